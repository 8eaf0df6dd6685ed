"""Kill -9 of a whole pipeline at OpenRouter: a lost create is found by the lines of the job, once that has
ended.
"""

from __future__ import annotations

from tests.kill_matrix import KillMatrix


class TestOpenRouter(KillMatrix):
    dialect, variable = "openrouter", "OPENROUTER_BASE_URL"
    model = "openrouter:openai/gpt-4.1-mini"
