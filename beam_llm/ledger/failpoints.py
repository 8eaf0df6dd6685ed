"""Named places in the life of a job where a process may be killed; only tests use them.

planned parts ─► intent.before ─► intent.after ─► staged ─► uploaded ─► marked
    ─► create.before ─► create.sent ─► create.after ─► ack.after ─► waiting ─► ended
    ─► collect.file ─► collect.half ─► answers.before ─► done.before ─► done.after
    ─► output.half ─► child.begun
queued, split, limit.noted: refused by a full queue; adopted: a job found in place of a lost
acknowledgement
"""

from __future__ import annotations

from collections.abc import Callable

watch: Callable[[str], None] | None = None
"""Called with the point's name where set."""


def failpoint(name: str) -> None:
    if watch is not None:
        watch(name)
