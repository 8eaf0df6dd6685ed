"""`beam-llm compare`: is packing safe for this question?

    population ─► sample ─► ask alone ─┐
                         ├► ask 5 each ─┼► judge ─► comparison ─► advice
                         └► ask 20 each ┘

population             all records, and the sample that stands for them
asking                 asks the sample at one size, with the engine that a run uses
judging                compares answers; projects a size's figures to the whole input
comparison             what was measured, as data
advice                 which size to take: a pure function
command, presentation  the command, and its tables and JSON
"""
