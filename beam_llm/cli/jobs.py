"""`beam-llm jobs ls | show | attach | cancel | cleanup`: shows, collects and tidies the batch jobs
in the ledger of a staging location.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence

import orjson

from beam_llm import config, stores
from beam_llm.cli.exit_codes import ALL_ANSWERED, FAILED
from beam_llm.cli.files.records import Answer, Row, absolute
from beam_llm.cli.files.target import Target, refuse_overwriting
from beam_llm.cli.files.writers import write_json_lines
from beam_llm.cli.flags import settings_from_flags
from beam_llm.cli.progress import Meter, write_line
from beam_llm.cli.running import RunMetrics, run_watched, runs_here
from beam_llm.cli.spool import Spool, records_in
from beam_llm.cli.summary import exit_code_of
from beam_llm.cli.tally import Tally
from beam_llm.cli.words import duration, price, table
from beam_llm.config import Settings
from beam_llm.errors import LLMError, UsageError, plural, printable
from beam_llm.jobs import Cleanup, JobView, admin, tidy
from beam_llm.leftovers import remove_leftovers, scratch_folder
from beam_llm.protocols import BatchProvider, Store
from beam_llm.providers import check, compile_task, connect_batch


def ls(args: argparse.Namespace) -> int:
    """Prints one line per job: a table, or JSON lines."""
    jobs = admin.list_jobs(store_at(args.staging_location))
    if args.json:
        for job in jobs:
            print(orjson.dumps(job.as_dict()).decode())
        return ALL_ANSWERED
    if not jobs:
        print(printable(f"no jobs in {args.staging_location}"))
        return ALL_ANSWERED
    counts = ("records", "answered", "failed", "passed on", "requests")
    header = ("no.", "job", "state", *counts, "cost", "age", "model")
    print(table(header, [_line(job) for job in jobs], left=(1, 2, 10)))
    return ALL_ANSWERED


def _line(job: JobView) -> tuple[str, ...]:
    done = job.state == "done"
    # The ledger knows these counts only once a job is done.
    counts = [f"{count:,}" if done else "" for count in (job.answered, job.failed, job.left)]
    cost = price(job.cost_usd) if done or job.cost_usd is not None else ""
    return (
        job.job,
        _name(job),
        _state(job),
        f"{job.records:,}",
        *counts,
        "" if job.kind == "live" else f"{job.lines:,}",
        cost,
        duration(max(time.time() - job.created_at, 0.0)),
        job.model,
    )


def _name(job: JobView) -> str:
    """What the job is called at the provider."""
    return "live calls" if job.kind == "live" else job.job_id or "–"


def _state(job: JobView) -> str:
    """The state that the ledger knows, such as `created`; the provider is not asked."""
    follows = f" (follows {job.parent})" if job.parent else ""
    return (job.ended or job.state) + follows


def show(args: argparse.Namespace) -> int:
    """Prints one job in full, and the jobs that asked again for what it left over."""
    job, following = admin.show(store_at(args.staging_location), args.id)
    blocks = [
        "\n".join(printable(f"{name:<10}{value}") for name, value in _facts(view).items())
        for view in (job, *following)
    ]
    print("\n\n".join(blocks))
    return ALL_ANSWERED


def _facts(view: JobView) -> dict[str, str]:
    doubles = f" ({plural(view.doubles, 'double')} cancelled)" if view.doubles else ""
    facts = {
        "number": view.job,
        "job": "live calls" if view.kind == "live" else view.job_id or "not submitted yet",
        "state": _state(view),
        "model": f"{view.model} at {view.host}",
        "planned": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(view.created_at)),
        "records": f"{view.records:,} in {plural(view.lines, 'request')}, about "
        f"{view.tokens:,} input tokens",
        "attempts": f"{view.attempts}{doubles}",
    }
    if view.state == "done":
        to_job = f", to job {view.follow_up}" if view.follow_up else ""
        facts |= {
            "answered": f"{view.answered:,}",
            "failed": f"{view.failed:,}",
            "passed on": f"{view.left:,}{to_job}",
        }
    # What live calls cost is known before their end.
    if view.state == "done" or view.cost_usd is not None:
        facts["cost"] = price(view.cost_usd)
    return facts


def attach(args: argparse.Namespace) -> int:
    """Waits for jobs, collects them, writes their records with their answers as JSON lines."""
    settings = settings_from_flags(args, mode="batch_api", staging_location=args.staging_location)
    # Checked before the wait for the jobs, which may take a day.
    refuse_overwriting(_target(args), [])
    if args.output != "-" and not args.output.endswith((".jsonl", ".ndjson")):
        raise UsageError(f"the output {args.output!r} has to be a .jsonl file, or - for stdout")
    ids, left = _job_ids(
        store_at(args.staging_location), args.ids, compile_task(settings).fingerprint.hex()
    )
    if left:
        write_line(f"{args.name}: left {plural(left, 'job')} of other prompts, models or outputs")
    # Answers go through the disk: a job may have more of them than fit into memory.
    spool = Spool(_new_folder(args))
    try:
        tally = _collect(args, settings, ids, spool.folder)
    finally:
        spool.remove()
    if not args.quiet:
        write_line(
            f"{plural(tally.records, 'record')} of {plural(len(ids), 'job')}, cost {tally.cost()}"
        )
    return exit_code_of(args.name, tally)


def _new_folder(args: argparse.Namespace) -> str:
    """A folder for what the workers collect, which they and this process can both see."""
    if runs_here(args.beam_options):
        return tempfile.mkdtemp(dir=scratch_folder())
    place = args.output if args.output != "-" else f"{args.staging_location}/attached"
    return f"{absolute(place)}.partial-{uuid.uuid4().hex[:12]}"


def _target(args: argparse.Namespace) -> Target:
    return Target(args.output, "jsonl", replaces=args.force)


def _collect(args: argparse.Namespace, settings: Settings, ids: list[str], folder: str) -> Tally:
    def run() -> RunMetrics:
        from beam_llm.cli import pipeline

        return pipeline.collect(settings, ids, folder, list(args.beam_options))

    run_watched(
        run,
        Meter(0),
        resume_hint="the jobs stay in the ledger, and the same command again collects them",
        quiet=args.quiet,
        at_once=True,
    )
    field = settings.output_field or "answer"
    # Counted as they are written: events of workers elsewhere don't reach this process.
    tally = Tally()
    write_json_lines(_target(args), _rows(folder, tally), field)
    return tally


def _rows(folder: str, tally: Tally) -> Iterator[tuple[Row, Answer]]:
    """The records with their answers, in the order of their input where they had one."""
    for answer, fields in records_in(folder):
        tally.add(answer)
        yield Row(0, fields, None), Answer(answer.value, answer.error)


def _job_ids(store: Store, given: Sequence[str], task: str) -> tuple[list[str], int]:
    """Provider ids of the jobs named by number or id. A follow-up comes with its job.

    Args:
      task: hex digest of a task; where no job is named, all of its jobs that have an id are meant.

    Returns:
      The ids, and how many jobs of other tasks were left out.

    Raises:
      UsageError: a job that isn't in the ledger, or has no id yet; or there are only jobs of other
        tasks.
    """
    if given:
        views = [admin.show(store, name)[0] for name in given]
        # Follow-ups and halves are collected with the job that they belong to: once.
        return list({view.number: _job_id(view) for view in views}.values()), 0
    jobs = [job for job in admin.list_jobs(store) if job.job_id is not None and job.kind == "job"]
    ids = [str(job.job_id) for job in jobs if job.task == task]
    if jobs and not ids:
        raise UsageError(
            f"{plural(len(jobs), 'job')} found, but none made with this model, prompt, output and "
            "parameters: collect them with the arguments they were submitted with"
        )
    return ids, len(jobs) - len(ids)


def _job_id(job: JobView) -> str:
    if job.kind == "live":
        raise UsageError(f"{job.job} is of live calls: name the job they are for, {job.number}")
    if job.job_id is None:
        raise UsageError(
            f"job {job.job} has not been submitted yet: run the command that planned it again"
        )
    return job.job_id


def cancel(args: argparse.Namespace) -> int:
    """Asks the provider to cancel a job."""
    store = store_at(args.staging_location)
    job, _ = admin.show(store, args.id)
    with contextlib.closing(_provider(args, job)) as provider:
        job_id = admin.cancel(store, provider, args.id)
    kept = "what it has finished is kept and comes out of the next run or `beam-llm jobs attach`"
    print(f"asked the provider to cancel {printable(job_id)}; {kept}")
    return ALL_ANSWERED


def cleanup(args: argparse.Namespace) -> int:
    """Removes what finished jobs no longer need, after showing it and asking for consent, and the
    temporary files of killed runs without asking.
    """
    if left := remove_leftovers():
        print(f"removed the temporary files of {plural(left, 'killed run')} on this machine")
    store = store_at(args.staging_location)
    newest = {tidy.whose_job(job): job for job in admin.list_jobs(store)}
    with contextlib.ExitStack() as stack:
        providers = {}
        for whose, job in newest.items():
            try:
                providers[whose] = stack.enter_context(contextlib.closing(_provider(args, job)))
            except LLMError as error:
                # Where there are several, the flags and the environment may be for one of them.
                if len(newest) == 1:
                    raise
                place = " at ".join(filter(None, whose))
                write_line(f"{args.name}: what is kept by {place} is left: {error}")
        return _clean_up(args, store, providers)


def _clean_up(
    args: argparse.Namespace, store: Store, providers: Mapping[tidy.Whose, BatchProvider]
) -> int:
    # The same code finds what is shown here and removes it below.
    plan = tidy.cleanup(store, providers, dry_run=True)
    print(_describe_removal(plan))
    if not plan.names and not plan.provider_files and not plan.leftovers:
        return ALL_ANSWERED
    if not args.yes and not _ask_for_consent():
        print("nothing was removed")
        return ALL_ANSWERED
    done = tidy.cleanup(store, providers, dry_run=False)
    print(
        f"removed {plural(len(done.names), 'staging object')} and "
        f"{plural(len(done.provider_files) - len(done.failed), 'provider file')}"
    )
    for reason in done.failed:
        write_line(f"{args.name}: {reason}")
    return FAILED if done.failed else ALL_ANSWERED


def _describe_removal(plan: Cleanup) -> str:
    """What a clean-up removes, in words."""
    orphans = plural(len(plan.leftovers), "file")
    head = f"This removes {orphans} of killed processes. " if plan.leftovers else ""
    still_open = plural(len(plan.kept), "job")
    if not plan.names and not plan.provider_files:
        kept = f" ({still_open} still open, or in doubt)" if plan.kept else ""
        return f"{head}there is nothing to remove{kept}"
    kept = (
        f"\nNothing of the {still_open} still open, or in doubt, is touched." if plan.kept else ""
    )
    return f"{head}Of {plural(len(plan.jobs), 'finished job')} this removes {plan.texts}.{kept}"


def _ask_for_consent() -> bool:
    """Asks on the terminal.

    Raises:
      UsageError: there is nobody to ask.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("this removes files, and there is no terminal to ask on: add --yes")
    return input("Remove them? [y/N] ").strip().lower() in ("y", "yes")


def store_at(location: str) -> Store:
    """The staging location, which has to exist already.

    Raises:
      UsageError: there is no ledger.
    """
    # Not `open_store`, which writes: whoever may only read may look, too.
    store = stores.store_at(location)
    if store.get("ledger.json") is None:
        raise UsageError(
            f"there is no ledger in {location!r}: name the staging location of a batch_api run"
        )
    return store


def _provider(args: argparse.Namespace, job: JobView) -> BatchProvider:
    """The provider as the flags and the environment name it, for the model of a job.

    Raises:
      UsageError: it is not the provider that the ledger names.
    """
    names = ("api_key", "base_url", "api_version", "provider_options")
    flags = {name: getattr(args, f"option_{name}") for name in names}
    # The ledger has a job's model and host, but neither key nor options: the flags give those.
    named = config.settings(
        args.option_model or job.model, staging_location=args.staging_location, **flags
    )
    check(named)
    if (named.base_url or "").partition("://")[2].partition("/")[0] != job.host:
        raise UsageError(
            f"the jobs are at {job.host}, but base_url is {named.base_url!r}: give --base-url, or "
            "set the variable that the run had"
        )
    return connect_batch(named)
