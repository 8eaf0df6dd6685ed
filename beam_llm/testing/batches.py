from __future__ import annotations
class Batches:
    def __init__(self, options, folder, chat, billing) -> None:
        self.script = None
    async def close(self): pass
    async def handle(self, request, path): return None
    def billed_ids(self): return []
    def totals(self): return {}
