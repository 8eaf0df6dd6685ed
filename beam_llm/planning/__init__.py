"""Which of a run's records have a job already, and which job each of the others goes into.

planner.py       known or new, which line, which job: appended to the log
record_pool.py   the records of a plan, as columns
cutting.py       where lines and jobs end
"""

from beam_llm.planning.planner import FRAME_BYTES, plan

__all__ = ["FRAME_BYTES", "plan"]
