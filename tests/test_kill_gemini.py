"""Kill -9 of a whole pipeline on Gemini, whose lost creates are found by their label: billed twice 0,
whether a job's lines go along with its create or are uploaded before it.
"""

from __future__ import annotations

from tests.kill_matrix import KillMatrix


class TestGemini(KillMatrix):
    dialect, model, variable = "gemini", "gemini:gemini-2.5-flash", "GEMINI_BASE_URL"
    done_when_expired = 0  # there is nothing to fetch of an expired job


class TestGeminiByFile(TestGemini):
    model = "gemini:gemini-2.5-pro"  # whose texts are others
    constants = {"beam_llm.providers.gemini.batches.INLINE_BYTES": 0}
