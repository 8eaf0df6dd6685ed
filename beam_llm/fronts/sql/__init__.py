"""SQL files: their statements, checked and planned before any of them runs, and the plans' steps.

text ─ tokens ─ statements ─► syntax ─ script, planner ─► plan ─ steps ─► Beam

places                          where something stands in the file, and the errors that say so
tokens, statements, select      words; statements and queries
calls, options, type_syntax     calls of models, WITH and MAP, types as they are written
grammar, functions              expressions by sqlglot, and the functions in them
time_formats                    units and formats of times
syntax                          all of that as data
script, known                   the file from its first statement to its last
models, tables                  what CREATE makes
planner, layers, expressions    a query's columns, and what is computed before which call
asking, branches                calls of models, and the rows that they are needed for
grouping, ordering, storing     GROUP BY; ORDER BY and LIMIT; what INSERT gives each column
plan, types, compute            what runs; its types; its expressions, by DuckDB
steps, group_steps, in_flight   its steps in Beam, and the rows in them
"""
