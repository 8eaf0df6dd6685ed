"""Where the records go with their answers: a file that appears under its name when it is complete,
and not at all otherwise.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple

from beam_llm.cli.files import remote
from beam_llm.cli.files.csv_cells import ANSWERS
from beam_llm.cli.files.records import Source, is_remote
from beam_llm.cli.files.sources import is_special
from beam_llm.errors import LLMError, UsageError
from beam_llm.leftovers import lock_file, lock_if_free, scratch_folder


class Target(NamedTuple):
    """Where the records go with their answers.

    Attributes:
      path: a file, local or remote; `-` is stdout.
      format: where the name doesn't tell.
      replaces: whether a file of that name may be replaced.
      csv_safe: in which cells of a CSV file a text that a spreadsheet would run as a formula gets a
        `'` before it: those of answers, which a model wrote and nobody has looked at; all; or none.
        Cells of the input stay as they are by default: they are the user's own, and -5 or
        +49 30 1234 in them are not an attack.
    """

    path: str
    format: str | None = None
    replaces: bool = False
    csv_safe: str = ANSWERS


def refuse_overwriting(target: Target, sources: Iterable[Source]) -> None:
    """Raises UsageError where the output is one of the inputs, can't be a file, is a closed stdout,
    or is there and not to be replaced.
    """
    output = target.path
    if output == "-":
        if sys.stdout is None:
            raise UsageError("the output is '-' (stdout), but stdout is closed: name a file")
        return
    for source in sources:
        if output == source.path or (
            not is_remote(output)
            and os.path.exists(output)
            and os.path.exists(source.path)
            and os.path.samefile(output, source.path)
        ):
            raise UsageError(f"the output {output!r} is one of the inputs: choose another name")
    if not is_remote(output):
        if os.path.isdir(output):
            raise UsageError(f"the output {output!r} is a folder: name a file in it")
        if not os.path.isdir(os.path.dirname(os.path.abspath(output))):
            raise UsageError(
                f"there is no folder {os.path.dirname(output)!r} for the output: create it first"
            )
    if not target.replaces and output_exists(output):
        raise UsageError(f"the output {output!r} exists already: --force writes it anew")


def output_exists(output: str) -> bool:
    """Whether there is a finished file of that name."""
    if not is_remote(output):
        return os.path.exists(output) and not is_special(output)
    return remote.exists(output)


@contextmanager
def open_target(target: Target) -> Iterator[IO[bytes]]:
    """A file to write; appears under its name when the block ends well, and not at all otherwise.
    One named `.gz` is compressed on the way.

    Raises:
      LLMError: it can't be written, as on a full disk.
    """
    try:
        with _plain_file(target) as file:
            if not target.path.lower().endswith(".gz"):
                yield file
                return
            # Without time and name in the header, equal answers give equal bytes.
            with gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed:
                yield packed  # type: ignore[misc]
    except OSError as error:
        # An error with a file name is about another file; the reader of a pipe may leave.
        if error.filename is not None or isinstance(error, BrokenPipeError):
            raise
        raise LLMError(
            f"{target.path!r} can't be written: {error.strerror or error}; all answers are kept: "
            "the same command again writes them"
        ) from error


@contextmanager
def _plain_file(target: Target) -> Iterator[IO[bytes]]:
    if target.path == "-" or is_special(target.path):
        with tempfile.TemporaryFile(prefix="beam-llm-") as file:
            yield file
            file.seek(0)
            _copy_to_stream(file, target.path)
    elif is_remote(target.path):
        aside = os.path.join(scratch_folder(), uuid.uuid4().hex)
        with open(aside, "wb+") as file:
            yield file
        _upload(aside, target)
        os.unlink(aside)
    else:
        with _replacing(target) as file:
            yield file


def _copy_to_stream(file: IO[bytes], output: str) -> None:
    if output == "-":
        shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
        sys.stdout.buffer.flush()
        return
    with open(output, "wb") as stream:
        shutil.copyfileobj(file, stream, 1 << 20)


@contextmanager
def _replacing(target: Target) -> Iterator[IO[bytes]]:
    """A local file, written beside its name and moved there at the end."""
    # Where the name is a link, what it leads to is replaced, and not the link.
    output = os.path.realpath(target.path)
    with _beside(output, 0o666) as (aside, file):
        if os.path.exists(output):
            with contextlib.suppress(PermissionError):
                shutil.copymode(output, aside)
        yield file
        file.flush()
        # Before it gets its name: otherwise a crash of the machine might leave a name without
        # content.
        os.fsync(file.fileno())
        _rename(aside, output, target)


@contextmanager
def _beside(output: str, mode: int) -> Iterator[tuple[str, IO[bytes]]]:
    """A new file beside a local output, and its path; it is gone at the end, unless it was moved.
    Such files that killed runs left are removed.

    Args:
      mode: its permissions, less the user's umask.
    """
    folder, name = os.path.split(output)
    remove_unfinished(output)
    aside = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
    descriptor = lock_file(aside, mode, is_new=True)
    assert descriptor is not None, "a name that nobody else has"
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield aside, file
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)


def _rename(aside: str, output: str, target: Target) -> None:
    if target.replaces:
        os.replace(aside, output)
        return
    try:
        # A link fails where the name is taken; a rename would replace what has appeared since.
        os.link(aside, output)
    except FileExistsError:
        raise _appeared_meanwhile(target) from None
    except OSError:  # a file system without links
        if os.path.exists(output):
            raise _appeared_meanwhile(target) from None
        os.replace(aside, output)


def _appeared_meanwhile(target: Target) -> LLMError:
    return LLMError(
        f"{target.path!r} has appeared since the run began, and stays as it is: the same command "
        "with --force replaces it"
    )


def remove_unfinished(output: str) -> None:
    """Removes what a killed run left of a local output beside its name."""
    folder, name = os.path.split(os.path.abspath(output))
    for path in glob.glob(
        os.path.join(glob.escape(folder), f".{glob.escape(name)}.{'[0-9a-f]' * 8}.tmp")
    ):
        with contextlib.suppress(OSError), lock_if_free(path) as dead:
            if dead:
                os.unlink(path)


def _upload(path: str, target: Target) -> None:
    """Uploads a complete file: an object store shows an object as soon as it is closed, so one is
    opened only when all of it is there.
    """
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems

    if not target.replaces and output_exists(target.path):
        raise _appeared_meanwhile(target)
    with (
        open(path, "rb") as source,
        FileSystems.create(target.path, compression_type=CompressionTypes.UNCOMPRESSED) as there,
    ):
        shutil.copyfileobj(source, there, 1 << 20)


def check_side_file(flag: str, path: str, what: str, mark: bytes) -> None:
    """Raises UsageError where no file can be written there beside the output, before anything is
    paid.

    Args:
      flag: the flag that names the file, such as `--summary`.
      what: what the file is, such as `a summary`.
      mark: stands in the first bytes of such a file: any other file is not replaced, as it may be
        data.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if is_remote(path):
        raise UsageError(f"{flag} is {path!r}: name a local file")
    if not os.path.isdir(folder):
        raise UsageError(f"there is no folder {folder!r} for {flag}: create it first")
    if os.path.isdir(path):
        raise UsageError(f"{flag} is {path!r}, which is a folder: name a file in it")
    if is_special(path):
        raise UsageError(f"{flag} is {path!r}, which is a pipe or a device: name a file")
    if os.path.exists(path):
        with open(path, "rb") as file:
            begin = file.read(200)
        if begin and mark not in begin:
            raise UsageError(
                f"{flag} is {path!r}, which exists and is not {what} of beam-llm: name another file"
            )


def write_side_file(path: str, data: bytes, mode: int = 0o666) -> None:
    """Writes the file in one step.

    Args:
      mode: its permissions, less the user's umask.
    """
    path = os.path.realpath(path)  # as for an output: what a link leads to, and not the link
    with _beside(path, mode) as (aside, file):
        file.write(data)
        file.flush()
        os.replace(aside, path)
