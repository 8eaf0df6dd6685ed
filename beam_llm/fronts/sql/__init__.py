"""SQL files: their statements, all checked and planned before any of them runs, and the Beam steps
of the plans.

text ─ tokens ─ statements ─► syntax ─ script, planner ─► plan ─ steps ─► Beam

places                          places in the file, and the errors that name them
tokens, statements, select      words; statements and queries
calls, options, type_syntax     calls of models, WITH and MAP, the syntax of types
grammar, functions              expressions by sqlglot, and the functions in them
time_formats                    units and formats of times
syntax                          all of that as data
script, catalog                 the file from its first statement to its last
models, tables                  what CREATE makes
planner, layers, expressions    a query's columns, and what is computed before which call
call_planner, branches          calls of models, and the rows for which they are needed
grouping, ordering, insertion   GROUP BY; ORDER BY and LIMIT; the value that INSERT gives a column
plan, types, compute            what runs; its types; its expressions, by DuckDB
steps, group_steps, in_flight   its steps in Beam, and the rows in them
"""
