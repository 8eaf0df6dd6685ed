"""Where the rows of each statement go, and what an earlier run has written there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from beam_llm.cli.files.target import Target, output_exists, refuse_overwriting
from beam_llm.cli.retry import retry_settings, version_of
from beam_llm.cli.spool import Spool, folder_for, holds_answers, is_marked_kept
from beam_llm.cli.sql.outputs import file_of, make_folder
from beam_llm.cli.sql.survey import question_of
from beam_llm.errors import LLMError, UsageError
from beam_llm.fronts.sql.plan import Branch, Plan
from beam_llm.fronts.sql.tables import Table


@dataclass
class Destination:
    """Where a plan's rows go.

    Attributes:
      plan: the plan to run.
      path: the file that is written; `-` for stdout, empty for a Beam sink.
      folder: where answers are kept until there is one for every row.
      finished: there is nothing to run: an earlier run has written it, say.
    """

    plan: Plan
    path: str
    folder: str
    finished: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it is a file, and neither stdout nor a Beam sink."""
        return self.path not in ("", "-")

    @property
    def is_part(self) -> bool:
        """Whether it is one of several files of its table."""
        return is_folder(self.plan)

    @property
    def name(self) -> str:
        """Its name in a summary."""
        sink = self.plan.target
        return self.path or (sink.transform if sink is not None else "")

    def spool(self, *, force: bool) -> Spool:
        """The spool that keeps its answers; an empty one where every row is asked about again."""
        if force and is_marked_kept(self.folder):
            Spool(self.folder).remove()
        return Spool(self.folder)

    def plan_of_retry(self) -> Plan:
        """The plan, whose batch runs now need new answers: the ledger has the old ones, including
        the errors.
        """
        version = version_of(Target(self.path))

        def with_new_answers(branch: Branch) -> Branch:
            return replace(branch, settings=retry_settings(branch.settings, version))

        asks = (
            replace(ask, branches=tuple(map(with_new_answers, ask.branches)))
            for ask in self.plan.asks
        )
        return replace(self.plan, asks=tuple(asks))


def is_folder(plan: Plan) -> bool:
    """Whether the plan writes to a table that is a folder of parts."""
    sink = plan.target
    return sink is not None and sink.connector == "filesystem" and sink.is_folder


def destinations_of(plans: Sequence[Plan], *, here: bool) -> list[Destination]:
    """Where each plan's rows go, in the plans' order.

    Args:
      here: the workers are in this process.
    """
    seen: Counter[tuple[str, bytes]] = Counter()
    found = []
    for plan in plans:
        question, sink = question_of(plan), plan.target
        path = "-" if sink is None or sink.connector == "print" else ""
        part = ""
        if sink is not None and sink.connector == "filesystem":
            # The same INSERT twice in a file writes two parts, and each has to find its own part
            # again.
            number = seen[sink.path, question]
            seen[sink.path, question] += 1
            part = f"{question[:6].hex()}-{number:02}" if number else question[:6].hex()
            path = file_of(sink, part)
        hidden = path
        if path != "-" and is_folder(plan):
            head, _, name = path.rpartition("/")
            hidden = f"{head}/.{name}"  # readers of the folder skip it
        folder = folder_for(hidden, question + part.encode(), (), here=here)
        found.append(Destination(plan, path, folder))
    return found


def check_outputs(
    destinations: Sequence[Destination], *, force: bool, retries: bool
) -> Iterator[str]:
    """Notes what earlier runs have finished; yields messages about it.

    Args:
      force: every row is asked about again.
      retries: only rows that ended as errors are asked about, so an output without any counts as
        finished.

    Raises:
      UsageError: an output can't be written, or there is nothing to do.
    """
    files = [one for one in destinations if one.is_file]
    for one in files:
        if one.is_part:
            make_folder(one.path)
        refuse_overwriting(Target(one.path, replaces=True), ())
        one.finished = not force and _is_written(one)
    paths = ", ".join(dict.fromkeys(one.path for one in files))
    if retries:
        yield from _look_at_errors(destinations, paths)
    elif files and len(files) == len(destinations) and all(one.finished for one in files):
        errors = any(is_marked_kept(one.folder) for one in files)
        raise UsageError(
            f"all of it is finished: {paths}. Nothing was asked: "
            + ("--retry-errors asks only the records that ended as errors, " if errors else "")
            + "--force asks again and replaces what is there"
        )


def _is_written(one: Destination) -> bool:
    # A file gets its name when it is complete, so it is enough that it exists.
    try:
        return output_exists(one.path)
    except LLMError as error:
        assert one.plan.target is not None
        head = f"{one.plan.place}: the table {one.plan.target.name!r}"
        raise type(error)(f"{head}: {error}") from None


def _look_at_errors(destinations: Sequence[Destination], paths: str) -> Iterator[str]:
    files = [one for one in destinations if one.is_file]
    if not any(one.finished for one in files):
        raise UsageError(
            "--retry-errors goes through outputs that exist, and there is none"
            + (f" at {paths}" if paths else ": this file writes no table of files")
        )
    # A file of several INSERTs is written anew from the answers of all of them.
    lost = {one.path for one in files if not holds_answers(one.folder)}
    for one in destinations:
        if one.finished and one.path not in lost:
            one.finished = False
            one.plan = one.plan_of_retry()
        elif not one.is_file:
            # Its rows are not kept anywhere, so models would be asked about all of them.
            one.finished = True
            yield f"{one.plan.place}: passed over: --retry-errors goes through tables of files"
    _redo_readers(destinations)
    if all(one.finished for one in destinations):
        raise UsageError(
            f"--retry-errors: no answers with errors among them are kept of {paths}. Nothing was "
            "asked: --force asks all again and replaces what is there"
        )


def _redo_readers(destinations: Sequence[Destination]) -> None:
    """Marks outputs as unfinished that were made from a table that is now written again.

    Raises:
      UsageError: that would ask models about rows that they have answered, since answers are kept
        only where there is an error among them.
    """
    rewritten: set[str] = set()
    for one in destinations:
        plan = one.plan
        reads = plan.source.path if isinstance(plan.source, Table) else ""
        if one.finished and one.is_file and reads in rewritten:
            together = [other for other in destinations if other.path == one.path]
            if any(other.plan.asks for other in together):
                raise UsageError(
                    f"{plan.place}: --retry-errors writes the table anew that this INSERT has read "
                    "and asked models about, and its own answers are no longer kept, as there was "
                    "no error among them. Nothing was asked: --force asks all again; or take this "
                    "INSERT out of the file, and run it with --force afterwards"
                )
            for other in together:
                other.finished = False
        if one.is_file and not one.finished and plan.target is not None:
            rewritten.add(plan.target.path)
