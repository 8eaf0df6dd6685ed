"""Finds files that Beam's file systems reach, such as `gs://`, or says why they can't be found."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from beam_llm.errors import LLMError, UsageError

T = TypeVar("T")

ANSWER_SECONDS = 30
"""The longest wait for a first answer; Beam's own retries take two minutes. Source: Beam 2.74,
`io/gcp/gcsio_retry.py`, read 2026-11.
"""
_EXTRAS = {"gs": "gcp", "s3": "aws", "azfs": "azure", "hdfs": "hadoop"}
_OTHER_SCHEMES = {
    **dict.fromkeys(("s3a", "s3n"), "s3://BUCKET/…"),
    **dict.fromkeys(("gcs",), "gs://BUCKET/…"),
    **dict.fromkeys(("az", "abfs", "abfss", "wasb", "wasbs"), "azfs://ACCOUNT/CONTAINER/…"),
}
_CREDENTIALS = {
    "gs": ("the credentials (gcloud auth application-default login)",),
    "s3": ("the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)", "AWS_REGION"),
    "azfs": ("the credentials (AZURE_STORAGE_CONNECTION_STRING)",),
}
_beam_options: list[str] = []
_responding: set[str] = set()
"""Folders that have answered once. Those that have not are asked again: they may do so now."""


def set_beam_options(options: Sequence[str]) -> None:
    """Keeps the options after `--`: an S3 address and its keys may be among them."""
    _beam_options[:] = options


def matches(pattern: str) -> list[str]:
    """Paths of the files that match, sorted.

    Raises:
      LLMError: the file system doesn't answer, or refuses; says what to look at.
    """
    return _ask_file_systems(
        pattern, lambda systems: sorted(one.path for one in _match(systems, pattern))
    )


def exists(path: str) -> bool:
    """Whether there is a file of that name; raises as `matches` does."""
    return _ask_file_systems(path, lambda systems: bool(systems.exists(path)))


def _match(systems: Any, pattern: str) -> list[Any]:
    return systems.match([pattern])[0].metadata_list


def _ask_file_systems(path: str, ask: Callable[[Any], T]) -> T:
    scheme = path.partition("://")[0]
    try:
        systems = _file_systems()
        systems.get_filesystem(path)
        folder = path.rpartition("/")[0]
        if folder in _responding or _responds(folder):
            _responding.add(folder)
            return ask(systems)
        why = f"can't be reached: no answer in {ANSWER_SECONDS} s"
    except Exception as error:  # Beam's file systems have errors of all kinds
        if "Unable to get filesystem" in str(error):
            raise _unknown_scheme(path, scheme) from None
        why = f"can't be looked at: {_innermost(error)}"
    look_at = ["the network", "the path", *_CREDENTIALS.get(scheme, ())]
    raise LLMError(f"{path!r} {why}; check {', '.join(look_at)}")


def _unknown_scheme(path: str, scheme: str) -> UsageError:
    if scheme in _EXTRAS:
        return UsageError(
            f"{path!r} needs a part of Beam that is not installed: "
            f"pip install 'apache-beam[{_EXTRAS[scheme]}]'"
        )
    instead = _OTHER_SCHEMES.get(scheme, "a local path, or one of gs://, s3://, azfs://, hdfs://")
    return UsageError(f"{path!r}: Beam reads no {scheme}://: write {instead}")


def _innermost(error: Exception) -> str:
    """The reason in one line: Beam's own errors wrap others."""
    while details := getattr(error, "exception_details", None):
        error = next(iter(details.values()))
    return f"{type(error).__name__}: {error}"


def _file_systems() -> Any:
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    # A pipeline sets them, too, but files are looked at before there is one, and S3's file system
    # can't be created without them.
    FileSystems.set_options(PipelineOptions(list(_beam_options)))
    return FileSystems


def _responds(folder: str) -> bool:
    """Whether a question for one name is answered in time. The list that is wanted may well take
    longer, since a bucket may hold millions of names.
    """
    from apache_beam.io.filesystems import FileSystems

    if folder.startswith("gs://"):
        _find_credentials()
    answered = threading.Event()

    def look() -> None:
        # A refusal is an answer, too: the next call reports it better.
        with suppress(Exception):
            FileSystems.exists(f"{folder}/beam-llm")
        answered.set()

    threading.Thread(target=look, daemon=True, name="beam-llm-look").start()
    return answered.wait(ANSWER_SECONDS)


def _find_credentials() -> None:
    """Makes Beam look for Google Cloud credentials, which a public bucket doesn't need. Finding
    none takes 30 s of pauses, and more where nothing answers at the address of Google's metadata
    server. Source: Beam 2.74, `internal/gcp/auth.py`; google-auth 2, `_metadata.py`; read 2026-11.
    """
    from apache_beam.internal.gcp import auth
    from apache_beam.options.pipeline_options import PipelineOptions

    auth.get_service_credentials(PipelineOptions(list(_beam_options)))
