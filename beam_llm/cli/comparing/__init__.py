"""`beam-llm compare`: is packing safe for this question?

    population ─► sample ─► ask alone ─┐
                         ├► ask 5 each ─┼► judge ─► comparison ─► advice
                         └► ask 20 each ┘

population             all records, and those that stand for them
asking                 the sample at one size, by the engine that a run asks with
judging                answers held against one another; what a size comes to for the whole input
comparison             what was measured, as data
advice                 which size to take: a pure function
command, shown         the command, and its tables and JSON
"""
