"""Kill -9 of a whole pipeline at Fireworks: a lost create is repeated under its id."""

from __future__ import annotations

from typing import Any

from tests.kill_matrix import KillMatrix


class TestFireworks(KillMatrix):
    dialect, variable = "fireworks", "FIREWORKS_BASE_URL"
    model = "fireworks:accounts/fireworks/models/deepseek-v3p2"
    options: dict[str, Any] = {"provider_options": {"account_id": "emulator"}}
