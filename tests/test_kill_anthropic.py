"""Kill -9 of a whole pipeline whose provider has no names for jobs: a lost create is found by what
is in the job, once that has ended.
"""

from __future__ import annotations

from tests.kill_matrix import KillMatrix


class TestAnthropic(KillMatrix):
    dialect, model, variable = "anthropic", "anthropic:claude-haiku-4-5", "ANTHROPIC_BASE_URL"
