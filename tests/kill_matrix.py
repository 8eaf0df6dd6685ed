"""Kill -9 of a whole pipeline at the points of a job's life that are a provider's, for any of them:
before and behind what it is sent, and before its results are had. Then a run with the input shuffled
and another batch size. `test_kill.py` has all points, for OpenAI's: what differs at the others is
the ledger alone.

    from tests.kill_matrix import KillMatrix

    class TestAcme(KillMatrix):
        dialect, model, variable = "acme", "acme:large", "ACME_BASE_URL"

By the emulator's book: billed twice 0. By the rerun's output: lost 0, wrong 0.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from beam_llm.testing import EmulatorProcess, Fault
from tests.killed import (
    PATIENT,
    Run,
    billed,
    complaints,
    jobs_made,
    killed,
    once,
    rerun,
    reviews_of,
    shuffled,
)

POINTS = ["staged", "marked", "create.before#3", "create.after#2", "ended"]


class KillMatrix:
    """Subclass it under a name that begins with `Test`.

    Attributes:
      dialect: of the emulator.
      model: in it.
      variable: of the environment, for its address.
      options: of LLMPredict, over `tests.killed.QUICK`.
      done_when_expired: part of an expired job's lines that are answered, and can be fetched.
    constants: of modules, `package.module.NAME`, as they are in the runs.
    """

    dialect: str
    model: str
    variable: str
    options: dict[str, Any] = {}
    done_when_expired = 0.5
    constants: dict[str, Any] = {}

    def run(self, running: EmulatorProcess, folder: Path, texts: list[str], **more: Any) -> Run:
        """A run over the texts."""
        options = {"model": self.model, "list_lag_seconds": 0.6, **self.options, **more}
        address = running.environment_of(self.dialect)[self.variable]
        return Run(address, str(folder), texts, options, constants=self.constants)

    def texts(self, tag: str) -> list[str]:
        return reviews_of(f"{self.model} {tag}")

    # 24 records, 3 a line, 3 lines a job: 3 jobs, so that a kill finds jobs in every state.
    @pytest.mark.parametrize("point", POINTS)
    def test_killed_at_any_point_the_rerun_answers_all_and_pays_nothing_twice(
        self, running: EmulatorProcess, tmp_path: Path, point: str
    ) -> None:
        texts = self.texts(point)
        run = self.run(running, tmp_path, texts, batch_size=3, job_max_records=3)
        assert killed(run.replaced(kill=point)) == -signal.SIGKILL
        again = shuffled(texts, point)
        assert not complaints(rerun(self.run(running, tmp_path, again, batch_size=5)), again)
        assert billed(running, texts) == once(texts)

    @pytest.mark.parametrize("lag", [0.0, 0.3], ids=["listed at once", "listed late"])
    def test_a_job_whose_create_got_no_answer_is_found_and_adopted(
        self, running: EmulatorProcess, tmp_path: Path, lag: float
    ) -> None:
        running.set_faults(Fault("create_lost", nth=1), Fault("list_lag", seconds=lag))
        texts, before = self.texts(f"lost {lag}"), jobs_made(running)
        run = self.run(running, tmp_path, texts, **PATIENT)
        assert not complaints(rerun(run), texts)
        assert jobs_made(running) == before + 1
        assert billed(running, texts) == once(texts)

    def test_a_job_that_is_created_after_its_create_was_given_up_is_the_only_one(
        self, running: EmulatorProcess, tmp_path: Path
    ) -> None:
        running.set_faults(Fault("create_late", nth=1, seconds=0.5))
        texts, before = self.texts("late"), jobs_made(running)
        run = self.run(running, tmp_path, texts, **PATIENT)
        assert not complaints(rerun(run), texts)
        assert jobs_made(running) == before + 1
        assert billed(running, texts) == once(texts)

    def test_killed_between_an_expired_job_and_its_follow_up(
        self, running: EmulatorProcess, tmp_path: Path
    ) -> None:
        running.set_faults(Fault("expire", nth=1, done=self.done_when_expired))
        texts = self.texts("expired")
        run = self.run(running, tmp_path, texts)
        assert killed(run.replaced(kill="create.after#2")) == -signal.SIGKILL
        again = shuffled(texts)
        assert not complaints(rerun(self.run(running, tmp_path, again, batch_size=5)), again)
        assert billed(running, texts) == once(texts)
