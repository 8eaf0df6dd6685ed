"""Kill -9 of a whole pipeline whose provider makes one job for one token: a lost create is sent
again under its name, and no doubt arises.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from beam_llm.testing import EmulatorProcess, Fault
from tests.kill_matrix import KillMatrix
from tests.killed import PATIENT, Run, billed, complaints, jobs_made, once, rerun

if TYPE_CHECKING:
    from tests.components.s3 import S3Server

ROLE = "arn:aws:iam::123456789012:role/batches"
BUCKET = "killed-runs"


@pytest.fixture(scope="module")
def _emulator_process(
    tmp_path_factory: pytest.TempPathFactory, _s3_session: S3Server
) -> Iterator[EmulatorProcess]:
    """The emulator, which keeps jobs' files in the same S3 as the runs do."""
    _s3_session.make_bucket(BUCKET)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _s3_session.environment.items():
            patch.setenv(name, value)
        folder = tmp_path_factory.mktemp("provider")
        with EmulatorProcess(state_dir=folder, batch_seconds=0.15) as emulator:
            yield emulator


class TestBedrock(KillMatrix):
    dialect, model = "bedrock", "bedrock:anthropic.claude-haiku-4-5-20251001-v1:0"
    variable = "AWS_ENDPOINT_URL_BEDROCK_RUNTIME"
    options = {
        "api_key": None,
        "provider_options": {
            "region": "us-east-1",
            "role_arn": ROLE,
            "bucket": f"s3://{BUCKET}/jobs",
            "min_records": 1,
        },
    }

    @pytest.fixture(autouse=True)
    def _aws(self, _s3_session: S3Server) -> None:
        self.environment = _s3_session.environment

    def run(self, running: EmulatorProcess, folder: Path, texts: list[str], **more: Any) -> Run:
        run = super().run(running, folder, texts, **more)
        return run.replaced(environment=self.environment)

    def test_a_create_that_never_got_an_answer_is_told_by_no_list(
        self, running: EmulatorProcess, tmp_path: Path
    ) -> None:
        """Its token is enough: jobs may not even be listed."""
        running.set_faults(
            Fault("create_late", nth=1, seconds=0.3), Fault("poison", where="list", status=403)
        )
        texts, before = self.texts("late, and no list"), jobs_made(running)
        assert not complaints(rerun(self.run(running, tmp_path, texts, **PATIENT)), texts)
        assert jobs_made(running) == before + 1
        assert billed(running, texts) == once(texts)
