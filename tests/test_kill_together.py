"""Kill -9 of a whole pipeline at Together: a lost create is found by its input alone, for names are dropped."""

from __future__ import annotations

from tests.kill_matrix import KillMatrix


class TestTogether(KillMatrix):
    dialect, variable = "together", "TOGETHER_BASE_URL"
    model = "together:meta-llama/Llama-3.3-70B-Instruct-Turbo"
