"""What every provider of batch jobs promises (`protocols.BatchProvider`), for each rung of the
ladder of recovery.

    from beam_llm.protocols import Recovery
    from beam_llm.testing.contracts import BatchProviderContract
    from beam_llm.testing.contracts.batches import on_fake
    from beam_llm.testing.fake_batches import FakeBatches, FakeClock

    class TestMyBatches(BatchProviderContract):
        @pytest.fixture(autouse=True)
        def _server(self):
            self.fake = FakeBatches(FakeClock(), rung=Recovery.LABEL)

        def provider(self):
            return self.fake

        def arrange(self, *mishaps):
            on_fake(self.fake, *mishaps)

        def jobs_made(self):
            return [job.job_id for job in self.fake.jobs]

        def now(self):
            return self.fake.clock.time()

        def pass_time(self, seconds):
            self.fake.clock.sleep(seconds)

`emulator_options` gives the same mishaps as options of `beam_llm.testing.Emulator`.
"""

from __future__ import annotations

import enum
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from beam_llm.errors import (
    CallError,
    CannotTell,
    InputGone,
    NotCreated,
    QueueFull,
    Rejected,
    Retryable,
    UnknownJob,
)
from beam_llm.protocols import (
    BatchProvider,
    BatchTraits,
    FindsUnnamed,
    HasLineForms,
    LineEnd,
    LineForm,
    LineReply,
    Recovery,
    RemoteJob,
    Slot,
)
from beam_llm.testing.contracts.completions import PNG, all_texts
from beam_llm.testing.emulator.faults import Fault
from beam_llm.testing.fake_batches import FakeBatches
from beam_llm.values import Completion, Finish, JobState, Media, Message, Request, Usage

# In real seconds: a test that hangs fails after this time.
_TIMEOUT_SECONDS = 60.0
# Longer than any provider's window, so that jobs from before that time can't be the job in
# question.
_LONG_AGO_SECONDS = 5 * 86_400.0
_LAG_SECONDS = 5.0
"""How late a mishap's job is created or listed, by the server's clock."""

_LISTING = (Recovery.CONTAINER, Recovery.METADATA, Recovery.LABEL)


class Mishap(enum.Enum):
    """What a provider's server may do to a job, or to its list."""

    CREATE_LOST = "create lost"
    """The next create makes its job, but its answer is lost."""
    CREATE_LATE = "create late"
    """The next create gets no answer, but makes its job some seconds later."""
    CREATE_REFUSED = "create refused"
    """The next create is refused as invalid."""
    CREATE_BROKEN = "create broken"
    """The next create fails because of an error of the server's own."""
    QUEUE_FULL = "queue full"
    """The next create finds the queue full."""
    LISTED_LATE = "listed late"
    """A job is listed some seconds after its create."""
    LISTED_WITHOUT_NAME = "listed without name"
    """The list leaves out the names of jobs."""
    LISTED_WITHOUT_INPUT = "listed without input"
    """The list leaves out the input files of jobs."""
    LISTED_OLDEST_FIRST = "listed oldest first"
    LIST_REFUSED = "list refused"
    """Jobs can't be listed."""
    YOUNG_UNKNOWN = "young unknown"
    """A job is unknown for some seconds after its create."""
    EXPIRE = "expire"
    """A job expires when one of its lines is done."""
    REFUSE_LINE = "refuse line"
    """The first line of each job is refused."""
    LOSE_LINE = "lose line"
    """The first line of each job gets no answer."""
    NO_COUNTS = "no counts"
    """Jobs don't say how many requests are done."""
    STUCK = "stuck"
    """Jobs don't end by themselves."""
    STRANGE_WORD = "strange word"
    """A running job has a status that nobody knows."""
    REPEAT_KEY = "repeat key"
    """Every call is refused with the key in the message."""


def _id_of(mishap: Mishap | None) -> str:
    return "usual" if mishap is None else mishap.value


def _request_with(image: Media) -> Request:
    message = Message("user", "Before it, behind it", media=((9, image),))
    return Request("contract-model", (message,), input_tokens=5)


class _Input(NamedTuple):
    """A job's input: the file of lines, and the id under which it was staged."""

    staged: str | None
    lines: Path


class BatchProviderContract:
    """Tests of a provider of batch jobs. Subclass it under a name that begins with `Test`, and
    override `provider`, `arrange` and `jobs_made`.

    The provider's rung on the ladder of recovery is read from its traits; the promises of the other
    rungs are skipped.

    Attributes:
      tmp_path: a local folder that belongs to the running test.
      key: the key that the provider has to use; no error may show it.
      key_reference: a reference to it, for `api_key`.
      impossible: mishaps that the server can't be made to have, or never has; tests that need them
        are skipped.
      cancels: whether jobs can be cancelled.
      shows_names: whether jobs are listed with their names, unless a mishap prevents that.
      forgets_results: whether results can be removed.
      takes_images: whether requests may have images.
    """

    tmp_path: Path
    # Long, and not made of words: a shorter key might be in an error message by chance.
    key = "sk-contract-0123456789abcdefghij"
    key_reference = "env:CONTRACT_API_KEY"
    impossible: frozenset[Mishap] = frozenset()
    cancels = True
    shows_names = True
    forgets_results = True
    takes_images = True

    def provider(self) -> BatchProvider:
        """A client with `key` for the arranged server."""
        raise NotImplementedError(f"{type(self).__name__} must override provider()")

    def arrange(self, *mishaps: Mishap) -> None:
        """Creates a server with these mishaps; called once in each test, before anything else."""
        raise NotImplementedError(f"{type(self).__name__} must override arrange()")

    def jobs_made(self) -> Sequence[str]:
        """The ids of all jobs at the server, listed or not."""
        raise NotImplementedError(f"{type(self).__name__} must override jobs_made()")

    def now(self) -> float:
        """The server's time, in seconds since the epoch."""
        return time.time()

    def pass_time(self, seconds: float) -> None:
        """Advances the server's clock, or waits."""
        time.sleep(seconds)

    def request(self, text: str) -> Request:
        """A question to one model that the server can answer."""
        return Request("contract-model", (Message("user", text),), input_tokens=5)

    def check_answer(self, completion: Completion) -> None:
        """Asserts that the completion is an answer to `request`."""
        assert completion.text

    def requests(self) -> list[Request]:
        """Three questions."""
        return [self.request(f"Question {number}") for number in range(3)]

    @pytest.fixture(autouse=True)
    def _surroundings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tmp_path = tmp_path
        monkeypatch.setenv("CONTRACT_API_KEY", self.key)

    # Lines

    def test_its_traits_are_of_the_right_types(self) -> None:
        self._arrange()
        traits = self.provider().traits
        assert type(traits) is BatchTraits
        assert 1 <= traits.min_requests <= traits.max_requests
        assert traits.max_bytes > 0
        assert traits.window_seconds > traits.create_seconds >= 0
        assert type(traits.recovery) is Recovery
        assert all(type(caveat) is str for caveat in traits.caveats)

    @pytest.mark.parametrize("custom_id", ["r-0", "0123456789abcdef0123456789abcdef-1", "A_z-9"])
    def test_a_line_is_the_same_bytes_for_the_same_request(self, custom_id: str) -> None:
        self._arrange()
        odd = "line\nends\r, \u2028, quotes \" and ', é, \U0001f600, \x00"
        for request in (*self.requests(), self.request(odd)):
            line = self.provider().encode_line(custom_id, request)
            assert type(line) is bytes
            # The caller adds the newlines; one inside would break the line in two.
            assert b"\n" not in line
            assert custom_id.encode() in line
            # By another client, as on another worker: a job's file is named after its content.
            assert self.provider().encode_line(custom_id, request) == line
            assert self.provider().encode_line("r-1000000", request) != line

    def test_an_image_stands_in_its_line_once_and_in_its_place(self) -> None:
        if not self.takes_images:
            pytest.skip("it takes no images")
        self._arrange()
        image = Media("photo", "image/png", PNG)
        line = self.provider().encode_line("r-0", _request_with(image))
        assert line.count(PNG.encode()) == 1
        assert line.index(b"Before it") < line.index(PNG.encode()) < line.index(b"behind it")
        other = Media("photo", "image/png", PNG.replace("z8AA", "z8AB"))
        assert self.provider().encode_line("r-0", _request_with(other)) != line

    @pytest.mark.parametrize(
        "line",
        [b"", b"\n", b"{", b"<html>", b'{"custom_id": "a', b"null", b"[]", b"\xff\xfe", b"0"],
        ids=repr,
    )
    def test_what_is_no_reply_is_a_value_error(self, line: bytes) -> None:
        self._arrange()
        with pytest.raises(ValueError):  # noqa: PT011 - the message is the provider's own
            self.provider().decode_line(line)

    # From create to results

    def test_a_job_goes_its_way_and_each_line_has_its_answer(self) -> None:
        self._arrange()
        provider = self.provider()
        job = self._create(provider)
        assert list(self.jobs_made()) == [job.job_id]
        ended = self._wait_for_end(provider, job)
        assert ended.state is JobState.COMPLETED
        assert ended.cause is None
        # Counts may be left out but must not be wrong: waiting and cancelling depend on them.
        assert ended.total in (3, None)
        assert (ended.completed, ended.failed) in ((3, 0), (None, None))
        replies = self._replies(provider, ended)
        assert sorted(replies) == ["r-0", "r-1", "r-2"]
        for reply in replies.values():
            assert (reply.error, reply.end) == (None, None)
            assert type(reply.completion) is Completion
            assert type(reply.completion.finish) is Finish
            assert type(reply.completion.usage) is Usage
            self.check_answer(reply.completion)

    @pytest.mark.parametrize(
        "text", ["yes", 'a "b" \\ \n', "\u00e9\u2028\U0001f600", "{}", "x" * 900]
    )
    def test_lines_of_one_form_say_what_stands_in_their_slots(self, text: str) -> None:
        self._arrange()
        provider = self.provider()
        if not isinstance(provider, HasLineForms):
            pytest.skip("it knows of no forms")
        provider.fetch(
            self._wait_for_end(provider, self._create(provider)), self.tmp_path / "results"
        )
        found = [
            provider.line_form(line)
            for line in (self.tmp_path / "results").read_bytes().splitlines(keepends=True)
        ]
        for form in (form for form in found if form is not None):
            assert not form.is_clean(f"{text} {self.key}")
            assert form.is_clean("req_0a")
            slots = {Slot.TEXT: json.dumps(text, ensure_ascii=False)[1:-1], Slot.COUNT: "3"}
            one = slots | {Slot.CUSTOM_ID: "r-1", Slot.REQUEST_ID: "req_0a"}
            other = {
                Slot.CUSTOM_ID: "r-2",
                Slot.REQUEST_ID: "b1-2",
                Slot.TEXT: "no",
                Slot.COUNT: "3",
            }
            first = provider.decode_line(_fill(form, one | {Slot.NAME: "n-1", Slot.NUMBER: "1"}))
            second = provider.decode_line(_fill(form, other | {Slot.NAME: "m", Slot.NUMBER: "0"}))
            assert first.completion is not None
            assert second.completion is not None
            assert (first.custom_id, second.custom_id) == ("r-1", "r-2")
            assert second.completion._replace(text=text, request_id="req_0a") == first.completion

    def test_a_job_is_shown_with_the_right_types(self) -> None:
        self._arrange()
        provider, since = self.provider(), self.now()
        created = self._create(provider)
        for job in (created, provider.look(created.job_id), self._wait_for_end(provider, created)):
            assert type(job) is RemoteJob
            assert job.job_id == created.job_id != ""
            assert type(job.state) is JobState
            # 0.0 means unknown; two minutes allow for a server whose clocks differ.
            assert job.created_at == 0.0 or since - 120.0 <= job.created_at <= self.now() + 120.0
            assert job.name in ("ours-0", None)
            assert all(
                count is None or type(count) is int
                for count in (job.total, job.completed, job.failed)
            )

    def test_another_client_fetches_the_same_lines_over_whatever_is_there(self) -> None:
        self._arrange()
        ended = self._wait_for_end(self.provider(), self._create(self.provider()))
        replies = self._replies(self.provider(), ended)
        # A file left by a killed worker must be replaced, neither kept nor appended to.
        (self.tmp_path / "results").write_bytes(b"older, and longer" * 10_000)
        assert self._replies(self.provider(), ended) == replies

    def test_what_was_forgotten_is_gone_and_forgetting_again_is_harmless(self) -> None:
        self._arrange()
        provider, job_input = self.provider(), self._stage(self.provider())
        ended = self._wait_for_end(provider, provider.create("ours-0", *job_input))
        # Cleaning up is repeated after a kill, and done by two workers at once.
        for _ in range(2):
            provider.forget(ended, job_input.staged)
            provider.forget(None, None)
        if self.forgets_results:
            with pytest.raises(CallError):
                provider.fetch(ended, self.tmp_path / "results")

    def test_staging_again_is_harmless(self) -> None:
        self._arrange()
        provider = self.provider()
        self._stage(provider)
        job = provider.create("ours-0", *self._stage(provider))
        assert self._wait_for_end(provider, job).state is JobState.COMPLETED
        assert list(self.jobs_made()) == [job.job_id]

    @pytest.mark.parametrize(
        "job_id",
        ["batch_none", "../files", "a/b?c=d", "", "x" * 5_000, "a\nb"],
        ids=lambda text: repr(text[:12]),
    )
    def test_an_unknown_job_is_said_to_be_one(self, job_id: str) -> None:
        self._arrange()
        with pytest.raises(UnknownJob):
            self.provider().look(job_id)

    def test_pending_jobs_are_those_that_have_not_ended(self) -> None:
        self._arrange(Mishap.STUCK)
        provider = self.provider()
        job = self._create(provider)
        self.pass_time(1.0)
        # An overview for people, which a server that can't list jobs need not have.
        try:
            pending = provider.pending()
        except CannotTell:
            return
        assert [other.job_id for other in pending] == [job.job_id]

    def test_the_time_is_the_servers_or_unknown(self) -> None:
        self._arrange()
        now = self.provider().now()
        assert now is None or abs(now - self.now()) < 120.0

    def test_closing_twice_is_harmless(self) -> None:
        self._arrange()
        provider = self.provider()
        self._create(provider)
        provider.close()
        provider.close()

    # How a create ends

    def test_a_refused_create_has_made_no_job_for_certain(self) -> None:
        self._arrange(Mishap.CREATE_REFUSED)
        with pytest.raises(NotCreated) as caught:
            self._create(self.provider())
        assert isinstance(caught.value.reason, Rejected)
        assert list(self.jobs_made()) == []

    def test_a_full_queue_is_told_from_a_refusal(self) -> None:
        self._arrange(Mishap.QUEUE_FULL)
        provider = self.provider()
        # Some refuse at once, others accept the job and let it fail: the driver treats both alike.
        try:
            cause: CallError | None = self._wait_for_end(provider, self._create(provider)).cause
        except NotCreated as error:
            assert list(self.jobs_made()) == []
            cause = error.reason
        assert isinstance(cause, QueueFull)
        assert cause.limit_tokens is None or cause.limit_tokens > 0

    def test_a_staged_input_that_is_gone_is_said_to_be(self) -> None:
        self._arrange()
        provider = self.provider()
        job_input = self._stage(provider)
        if job_input.staged is None:
            pytest.skip("this provider's create sends the lines itself")
        provider.forget(None, job_input.staged)
        try:
            cause: CallError | None = self._wait_for_end(
                provider, provider.create("ours-0", *job_input)
            ).cause
        except NotCreated as error:
            cause = error.reason
        assert isinstance(cause, InputGone)

    @pytest.mark.parametrize(
        "mishap", [Mishap.CREATE_LOST, Mishap.CREATE_LATE, Mishap.CREATE_BROKEN], ids=_id_of
    )
    def test_a_create_without_a_clear_answer_is_a_doubt(self, mishap: Mishap) -> None:
        self._arrange(mishap)
        assert not isinstance(
            self._lose_create(self.provider(), self._stage(self.provider())), NotCreated
        )

    # How a job ends

    def test_an_expired_job_gives_what_was_done(self) -> None:
        self._arrange(Mishap.EXPIRE)
        provider = self.provider()
        ended = self._wait_for_end(provider, self._create(provider))
        assert ended.state is JobState.EXPIRED
        replies = self._replies(provider, ended)
        assert set(replies) <= {"r-0", "r-1", "r-2"}
        # Finished requests are paid for, so their results must come; others may have an error or
        # no line at all.
        done = [reply for reply in replies.values() if reply.completion is not None]
        assert len(done) == 1
        assert {reply.end for reply in replies.values() if reply.completion is None} <= {
            LineEnd.EXPIRED
        }

    def test_a_cancelled_job_ends_as_one(self) -> None:
        if not self.cancels:
            pytest.skip("jobs of this provider can't be cancelled")
        self._arrange(Mishap.STUCK)
        provider = self.provider()
        job = self._create(provider)
        self.pass_time(1.0)
        # Twice while it runs and once afterwards, as two workers and a late one would.
        provider.cancel(job.job_id)
        provider.cancel(job.job_id)
        ended = self._wait_for_end(provider, job)
        assert ended.state is JobState.CANCELLED
        replies = self._replies(provider, ended)
        assert {reply.end for reply in replies.values() if reply.completion is None} <= {
            LineEnd.CANCELLED
        }
        provider.cancel(job.job_id)

    def test_cancelling_a_job_that_has_ended_changes_nothing(self) -> None:
        self._arrange()
        provider = self.provider()
        ended = self._wait_for_end(provider, self._create(provider))
        provider.cancel(ended.job_id)
        assert provider.look(ended.job_id).state is JobState.COMPLETED

    def test_a_refused_line_ends_by_itself_and_not_the_job(self) -> None:
        self._arrange(Mishap.REFUSE_LINE)
        provider = self.provider()
        ended = self._wait_for_end(provider, self._create(provider))
        assert ended.state is JobState.COMPLETED
        replies = self._replies(provider, ended)
        assert isinstance(replies["r-0"].error, CallError)
        assert replies["r-0"].end is LineEnd.REJECTED
        assert replies["r-1"].completion is not None
        assert replies["r-2"].completion is not None

    def test_a_line_that_got_no_answer_is_not_made_up(self) -> None:
        self._arrange(Mishap.LOSE_LINE)
        provider = self.provider()
        ended = self._wait_for_end(provider, self._create(provider))
        assert sorted(self._replies(provider, ended)) == ["r-1", "r-2"]

    def test_counts_that_are_not_told_are_none(self) -> None:
        self._arrange(Mishap.NO_COUNTS)
        provider = self.provider()
        ended = self._wait_for_end(provider, self._create(provider))
        assert (ended.completed, ended.failed) == (None, None)
        assert len(self._replies(provider, ended)) == 3

    def test_a_status_that_nobody_has_heard_of_is_a_job_still_running(self) -> None:
        self._arrange(Mishap.STRANGE_WORD)
        provider = self.provider()
        job = self._create(provider)
        # A word that the provider may introduce: taking it for an end would lose a paid job.
        states = set()
        for _ in range(200):
            states.add(provider.look(job.job_id).state)
            self.pass_time(0.5)
            if JobState.RUNNING in states:
                break
        assert states <= {JobState.WAITING, JobState.RUNNING}
        assert JobState.RUNNING in states

    def test_a_young_job_may_be_unknown_and_is_known_later(self) -> None:
        self._arrange(Mishap.YOUNG_UNKNOWN)
        provider = self.provider()
        job = self._create(provider)
        with pytest.raises(UnknownJob):
            provider.look(job.job_id)
        self.pass_time(_LAG_SECONDS + 1)
        assert provider.look(job.job_id).job_id == job.job_id

    def test_no_error_shows_the_key_though_the_server_repeats_it(self) -> None:
        self._arrange(Mishap.REPEAT_KEY)
        provider, lines = self.provider(), self._lines(self.provider())
        # Every method, since each reads the server's messages in its own place.
        job = RemoteJob("batch_1", JobState.COMPLETED, result_files=("file-1",))
        verbs: list[Callable[[], Any]] = [
            lambda: provider.stage(lines, "ours-0"),
            lambda: provider.create("ours-0", "file-1", lines),
            lambda: provider.find("ours", "file-1", self.now()),
            lambda: provider.look("batch_1"),
            lambda: provider.fetch(job, self.tmp_path / "results"),
            lambda: provider.cancel("batch_1"),
            lambda: provider.forget(job, "file-1"),
            lambda: provider.pending(),
        ]
        for verb in verbs:
            shown = all_texts(_error_of(verb))
            assert not [text for text in shown if self.key in text]

    # The ladder of recovery: what follows a lost create

    def test_token_a_repeated_create_makes_one_job(self) -> None:
        self._arrange(Mishap.CREATE_LOST)
        provider = self._provider_on(Recovery.TOKEN)
        job_input = self._stage(provider)
        self._lose_create(provider, job_input)
        again = provider.create("ours-0", *job_input)
        assert [again.job_id] == list(self.jobs_made())
        assert self.provider().create("ours-0", *job_input).job_id == again.job_id
        assert self._wait_for_end(provider, again).state is JobState.COMPLETED

    def test_token_a_create_repeated_before_the_slow_one_has_come_makes_one_job(self) -> None:
        self._arrange(Mishap.CREATE_LATE)
        provider = self._provider_on(Recovery.TOKEN)
        job_input = self._stage(provider)
        self._lose_create(provider, job_input)
        again = provider.create("ours-0", *job_input)
        self.pass_time(_LAG_SECONDS + 1)
        assert [again.job_id] == list(self.jobs_made())

    def test_token_another_name_is_another_job(self) -> None:
        self._arrange()
        provider = self._provider_on(Recovery.TOKEN)
        # Another attempt is meant to be another job: the previous one is known to have failed.
        jobs = {
            provider.create(name, *self._stage(provider)).job_id
            for name in ("ours-0", "ours-1", "ours2-0")
        }
        assert jobs == set(self.jobs_made())
        assert len(jobs) == 3

    @pytest.mark.parametrize("mishap", [Mishap.CREATE_LOST, Mishap.CREATE_LATE], ids=_id_of)
    @pytest.mark.parametrize(
        "listed", [None, Mishap.LISTED_LATE, Mishap.LISTED_OLDEST_FIRST], ids=_id_of
    )
    def test_a_lost_create_is_found_among_others(
        self, mishap: Mishap, listed: Mishap | None
    ) -> None:
        self._arrange(mishap, listed)
        provider = self._provider_on(*_LISTING)
        since, job_input = self.now(), self._stage(provider)
        self._lose_create(provider, job_input)
        # Different inputs as well as different names: LABEL providers may search by either.
        others = {
            provider.create(f"theirs-{number}", *self._stage(provider, number + 1)).job_id
            for number in range(3)
        }
        found = self._find(provider, job_input.staged, since)
        assert len(found) == 1
        assert {found[0].job_id} == set(self.jobs_made()) - others
        assert found[0].name in ("ours-0", None)

    @pytest.mark.parametrize("listed", [None, Mishap.LISTED_OLDEST_FIRST], ids=_id_of)
    def test_it_is_found_behind_jobs_of_long_ago(self, listed: Mishap | None) -> None:
        self._arrange(listed)
        provider = self._provider_on(*_LISTING)
        # In a list that starts with the oldest job, the search can't end at the first job that is
        # too old.
        for number in range(3):
            provider.create(f"theirs-{number}", *self._stage(provider, number + 1))
        self.pass_time(_LONG_AGO_SECONDS)
        since, job_input = self.now(), self._stage(provider)
        job = provider.create("ours-0", *job_input)
        assert [found.job_id for found in self._find(provider, job_input.staged, since)] == [
            job.job_id
        ]

    def test_every_attempt_is_found_in_any_state_and_no_other_name(self) -> None:
        if not self.shows_names:
            pytest.skip("a promise of lists that show names")
        self._arrange()
        provider = self._provider_on(*_LISTING)
        since = self.now()
        mine = {
            provider.create(f"ours-{attempt}", *self._stage(provider, attempt)).job_id
            for attempt in range(2)
        }
        # Names that a search by prefix or by substring would also match.
        for number, name in enumerate(("ours2-0", "our-0", "theirs-ours-0"), 2):
            provider.create(name, *self._stage(provider, number))
        for job_id in mine:
            self._wait_for_end(provider, provider.look(job_id))
        found = self._find(provider, None, since, count=2)
        assert {job.job_id for job in found} == mine
        assert {job.state for job in found} == {JobState.COMPLETED}

    def test_where_names_are_shown_nothing_found_means_that_there_is_nothing(self) -> None:
        self._arrange()
        provider = self._provider_on(*_LISTING)
        for number in range(2):
            provider.create(f"theirs-{number}", *self._stage(provider, number))
        self.pass_time(_LAG_SECONDS + 1)
        # Only this answer allows another create, so it has to be right.
        assert list(provider.find("ours", "file-that-nobody-has", self.now())) == []

    def test_label_without_names_it_is_found_by_its_input(self) -> None:
        self._arrange(Mishap.CREATE_LOST, Mishap.LISTED_WITHOUT_NAME)
        provider = self._provider_on(Recovery.LABEL)
        since, job_input = self.now(), self._stage(provider)
        if job_input.staged is None:
            pytest.skip("this provider's create sends the lines itself")
        self._lose_create(provider, job_input)
        other = provider.create("theirs-0", *self._stage(provider, 1))
        found = self._find(provider, job_input.staged, since)
        assert [job.job_id for job in found] == [
            job_id for job_id in self.jobs_made() if job_id != other.job_id
        ]

    # The client can't know whether it was lost or never sent: the answer has to be the same.
    @pytest.mark.parametrize("is_lost", [True, False], ids=["lost", "never sent"])
    def test_label_a_list_without_names_and_inputs_proves_nothing(self, is_lost: bool) -> None:
        lost = Mishap.CREATE_LOST if is_lost else None
        self._arrange(Mishap.LISTED_WITHOUT_NAME, Mishap.LISTED_WITHOUT_INPUT, lost)
        provider = self._provider_on(Recovery.LABEL)
        since, job_input = self.now(), self._stage(provider)
        if is_lost:
            self._lose_create(provider, job_input)
        provider.create("theirs-0", *self._stage(provider, 1))
        self.pass_time(_LAG_SECONDS + 1)
        with pytest.raises(CannotTell):
            provider.find("ours", job_input.staged, since)

    def test_jobs_that_cant_be_listed_are_a_doubt_and_not_a_no(self) -> None:
        self._arrange(Mishap.CREATE_LOST, Mishap.LIST_REFUSED)
        provider = self._provider_on(*_LISTING)
        since, job_input = self.now(), self._stage(provider)
        self._lose_create(provider, job_input)
        with pytest.raises(CallError):
            provider.find("ours", job_input.staged, since)

    @pytest.mark.parametrize("is_lost", [True, False], ids=["lost", "never sent"])
    def test_none_it_can_never_be_told(self, is_lost: bool) -> None:
        self._arrange(Mishap.CREATE_LOST if is_lost else None)
        provider = self._provider_on(Recovery.NONE)
        since, job_input = self.now(), self._stage(provider)
        if is_lost:
            self._lose_create(provider, job_input)
        self.pass_time(_LAG_SECONDS + 1)
        with pytest.raises(CannotTell):
            provider.find("ours", job_input.staged, since)

    # Rung NONE, for providers that can find a job once it has ended (`protocols.FindsUnnamed`)

    @pytest.mark.parametrize("mishap", [Mishap.CREATE_LOST, Mishap.CREATE_LATE], ids=_id_of)
    @pytest.mark.parametrize("listed", [None, Mishap.LISTED_OLDEST_FIRST], ids=_id_of)
    def test_unnamed_a_lost_create_is_found_once_it_has_ended(
        self, mishap: Mishap, listed: Mishap | None
    ) -> None:
        self._arrange(mishap, listed)
        provider = self._provider_of_unnamed()
        since, job_input = self.now(), self._stage(provider)
        self._lose_create(provider, job_input)
        others = {
            provider.create(f"theirs-{number}", *self._stage(provider, number + 1)).job_id
            for number in range(2)
        }
        found = self._find_unnamed(provider, since)
        assert {job.job_id for job in found} == set(self.jobs_made()) - others
        assert [job.name for job in found] == ["ours-0"]

    def test_unnamed_every_attempt_is_found_and_no_other_name(self) -> None:
        self._arrange()
        provider = self._provider_of_unnamed()
        since = self.now()
        mine = {
            provider.create(f"ours-{attempt}", *self._stage(provider, attempt)).job_id: attempt
            for attempt in range(2)
        }
        for number, name in enumerate(("ours2-0", "our-0", "theirs-ours-0"), 2):
            provider.create(name, *self._stage(provider, number))
        for job_id in self.jobs_made():
            self._wait_for_end(provider, provider.look(job_id))
        found = provider.find_unnamed("ours", 3, since, lambda job_id: False)
        assert {job.job_id: job.name for job in found} == {
            job_id: f"ours-{attempt}" for job_id, attempt in mine.items()
        }

    def test_unnamed_a_job_under_way_may_be_it_unless_it_is_known(self) -> None:
        self._arrange(Mishap.STUCK)
        provider = self._provider_of_unnamed()
        since = self.now()
        other = provider.create("theirs-0", *self._stage(provider, 1)).job_id
        self.pass_time(_LAG_SECONDS + 1)
        # Not CannotTell, which would end the wait: this doubt is resolved once the job has ended.
        with pytest.raises(CallError) as caught:
            provider.find_unnamed("ours", 3, since, lambda job_id: False)
        assert not isinstance(caught.value, CannotTell)
        assert other in str(caught.value)
        assert list(provider.find_unnamed("ours", 3, since, lambda job_id: job_id == other)) == []

    def test_unnamed_jobs_that_are_larger_or_older_or_of_others_are_not_it(self) -> None:
        self._arrange()
        provider = self._provider_of_unnamed()
        provider.create("ours-0", *self._stage(provider, 1))
        self.pass_time(_LONG_AGO_SECONDS)
        since = self.now()
        provider.create("theirs-0", *self._stage(provider))
        for job_id in self.jobs_made():
            self._wait_for_end(provider, provider.look(job_id))
        for lines in (1, 3):
            assert list(provider.find_unnamed("ours", lines, since, lambda job_id: False)) == []

    @pytest.mark.parametrize("listed", [None, Mishap.LISTED_OLDEST_FIRST], ids=_id_of)
    def test_unnamed_it_is_found_behind_jobs_of_long_ago(self, listed: Mishap | None) -> None:
        self._arrange(listed)
        provider = self._provider_of_unnamed()
        for number in range(3):
            provider.create(f"theirs-{number}", *self._stage(provider, number + 1))
        self.pass_time(_LONG_AGO_SECONDS)
        since = self.now()
        job = provider.create("ours-0", *self._stage(provider))
        assert [found.job_id for found in self._find_unnamed(provider, since)] == [job.job_id]

    def test_unnamed_a_list_that_is_refused_is_a_doubt_and_not_a_no(self) -> None:
        self._arrange(Mishap.CREATE_LOST, Mishap.LIST_REFUSED)
        provider = self._provider_of_unnamed()
        since, job_input = self.now(), self._stage(provider)
        self._lose_create(provider, job_input)
        with pytest.raises(CallError):
            provider.find_unnamed("ours", 3, since, lambda job_id: False)

    def _provider_of_unnamed(self) -> Any:
        """The provider; skips the test where it is not a `FindsUnnamed`."""
        provider = self.provider()
        if not isinstance(provider, FindsUnnamed):
            pytest.skip("a promise of FindsUnnamed, which this provider doesn't implement")
        return provider

    def _find_unnamed(self, provider: Any, since: float) -> Sequence[RemoteJob]:
        """Waits until jobs are found, which is once they have ended; before that there is none, or
        a doubt.
        """
        return self._find_in_time(
            lambda: provider.find_unnamed("ours", 3, since, lambda job_id: False), Retryable
        )

    # Helpers

    def _arrange(self, *given: Mishap | None) -> None:
        mishaps = [mishap for mishap in given if mishap is not None]
        # Skipped rather than passed, so that a report shows which promises were not tested.
        impossible = self.impossible.intersection(mishaps)
        if impossible:
            pytest.skip(
                f"not on this provider's server: {', '.join(mishap.value for mishap in impossible)}"
            )
        self.arrange(*mishaps)

    def _provider_on(self, *rungs: Recovery) -> BatchProvider:
        provider = self.provider()
        if provider.traits.recovery not in rungs:
            pytest.skip(
                f"a promise of {' and '.join(rung.name for rung in rungs)}; "
                f"this provider has {provider.traits.recovery.name}"
            )
        return provider

    def _lines(self, provider: BatchProvider, number: int = 0) -> Path:
        """A job's input; each `number` has different lines."""
        path = self.tmp_path / f"input-{number}.jsonl"
        # A different number of lines, too: NONE providers first tell jobs apart by their size.
        requests = self.requests()[number % 2 :] if number else self.requests()
        ids = [
            f"r-{place}" if not number else f"other-{number}-{place}"
            for place in range(len(requests))
        ]
        path.write_bytes(
            b"".join(
                provider.encode_line(*line) + b"\n" for line in zip(ids, requests, strict=True)
            )
        )
        return path

    def _stage(self, provider: BatchProvider, number: int = 0) -> _Input:
        lines = self._lines(provider, number)
        return _Input(provider.stage(lines, f"input-{number}"), lines)

    def _create(self, provider: BatchProvider) -> RemoteJob:
        return provider.create("ours-0", *self._stage(provider))

    def _lose_create(self, provider: BatchProvider, job_input: _Input) -> Exception:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - any but NotCreated may leave a job
            provider.create("ours-0", *job_input)
        assert not isinstance(caught.value, NotCreated)
        return caught.value

    def _find(
        self, provider: BatchProvider, staged: str | None, since: float, count: int = 1
    ) -> Sequence[RemoteJob]:
        """Waits until jobs are found, which is once the server lists them; before that there is
        none, or a doubt.
        """
        return self._find_in_time(lambda: provider.find("ours", staged, since), CannotTell, count)

    def _find_in_time(
        self,
        find: Callable[[], Sequence[RemoteJob]],
        doubt: type[CallError],
        count: int = 1,
    ) -> Sequence[RemoteJob]:
        end = time.monotonic() + _TIMEOUT_SECONDS
        while True:
            try:
                found = find()
            except doubt:
                found = []
            if len(found) >= count:
                return found
            assert time.monotonic() < end, "the job is never found"
            self.pass_time(1.0)

    def _wait_for_end(self, provider: BatchProvider, job: RemoteJob) -> RemoteJob:
        end = time.monotonic() + _TIMEOUT_SECONDS
        while not (current := provider.look(job.job_id)).state.has_ended:
            assert time.monotonic() < end, f"the job does not end: {current}"
            self.pass_time(1.0)
        return current

    def _replies(self, provider: BatchProvider, job: RemoteJob) -> dict[str, LineReply]:
        path = self.tmp_path / "results"
        provider.fetch(job, path)
        data = path.read_bytes()
        # A file that was cut off would end differently; lines are split only at newlines.
        assert data == b"" or data.endswith(b"\n")
        replies = [provider.decode_line(line) for line in data.split(b"\n")[:-1]]
        by_id = {reply.custom_id: reply for reply in replies}
        assert len(by_id) == len(replies)
        for reply in replies:
            assert type(reply) is LineReply
            assert (
                (reply.completion is None)
                == (type(reply.end) is LineEnd)
                == (reply.error is not None)
            )
        return by_id


def _fill(form: LineForm, values: Mapping[Slot, str]) -> bytes:
    return b"".join(
        values[part].encode() if isinstance(part, Slot) else part for part in form.parts
    )


def _error_of(verb: Callable[[], Any]) -> BaseException | None:
    try:
        verb()
    except Exception as error:
        return error
    return None


def on_fake(fake: FakeBatches, *mishaps: Mishap) -> None:
    """Sets a `FakeBatches`' knobs so that these mishaps happen."""
    faults = {
        Mishap.CREATE_LOST: "lost",
        Mishap.CREATE_LATE: "late",
        Mishap.CREATE_REFUSED: "refused",
        Mishap.CREATE_BROKEN: "500",
        Mishap.QUEUE_FULL: "429",
    }
    knobs: dict[Mishap, tuple[str, Any]] = {
        Mishap.LISTED_LATE: ("list_lag", _LAG_SECONDS),
        Mishap.LISTED_WITHOUT_NAME: ("shows_names", False),
        Mishap.LISTED_WITHOUT_INPUT: ("shows_inputs", False),
        Mishap.LISTED_OLDEST_FIRST: ("newest_first", False),
        Mishap.LIST_REFUSED: ("can_list", False),
        Mishap.YOUNG_UNKNOWN: ("unknown_until", fake.clock.time() + _LAG_SECONDS),
        Mishap.EXPIRE: ("expire_after", 1),
        Mishap.REFUSE_LINE: ("refuse", frozenset({"Question 0"})),
        # So large that only the first line is hit.
        Mishap.LOSE_LINE: ("drop_ids_every", 10**9),
        Mishap.NO_COUNTS: ("shows_counts", False),
        Mishap.STUCK: ("stuck", True),
        Mishap.STRANGE_WORD: ("running_word", "brewing"),
    }
    for mishap in mishaps:
        if mishap in faults:
            fake.create_faults.append(faults[mishap])
        elif mishap in knobs:
            setattr(fake, *knobs[mishap])


def emulator_options(*mishaps: Mishap, key: str = "") -> dict[str, Any]:
    """The mishaps as options of `beam_llm.testing.Emulator`."""
    options: dict[str, Any] = {
        "faults": [fault for mishap in mishaps for fault in _faults(mishap, key)]
    }
    if Mishap.LISTED_WITHOUT_NAME in mishaps:
        options["names_kept"] = False
    if Mishap.LISTED_WITHOUT_INPUT in mishaps:
        options["inputs_shown"] = False
    if Mishap.LISTED_OLDEST_FIRST in mishaps:
        options["list_order"] = "oldest"
    return options


def _faults(mishap: Mishap, key: str) -> list[Fault]:
    if mishap is Mishap.REPEAT_KEY:
        # A refusal, since a retryable error would be tried again for as long as the call may take.
        refused = ("upload", "content", "create", "retrieve", "list", "cancel", "delete")
        return [
            Fault("poison", where=where, message=f"The key {key} is not liked: Bearer {key}")
            for where in refused
        ]
    return [_FAULTS[mishap]] if mishap in _FAULTS else []


_FAULTS = {
    Mishap.CREATE_LOST: Fault("create_lost", nth=1),
    Mishap.CREATE_LATE: Fault("create_late", nth=1, seconds=_LAG_SECONDS),
    Mishap.CREATE_REFUSED: Fault("poison", where="create", nth=1),
    Mishap.CREATE_BROKEN: Fault("server_error", where="create", nth=1),
    Mishap.QUEUE_FULL: Fault("token_limit_at_create", nth=1),
    Mishap.LISTED_LATE: Fault("list_lag", seconds=_LAG_SECONDS),
    Mishap.LIST_REFUSED: Fault("poison", where="list", status=405),
    Mishap.YOUNG_UNKNOWN: Fault("retrieve_missing", seconds=_LAG_SECONDS),
    Mishap.EXPIRE: Fault("expire", done=1),
    Mishap.REFUSE_LINE: Fault("poison", where="line", nth=1),
    Mishap.LOSE_LINE: Fault("line_missing", nth=1),
    Mishap.NO_COUNTS: Fault("null_counts"),
    Mishap.STUCK: Fault("stuck"),
    Mishap.STRANGE_WORD: Fault("status_word", message="brewing"),
}
