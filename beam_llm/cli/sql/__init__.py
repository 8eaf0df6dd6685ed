"""Runs a SQL file's plans. Tables are files, and answers are kept until all of them have come, as
with `predict`.

    command, dry_run          the command; what it would do
    run, pipeline             statement by statement; one statement in Beam
    survey, groups, rows      a plan's source before anything is paid for, and row by row
    sorting                   ORDER BY, of the input or of the output
    destinations, outputs     where rows go; how files are written
    plan_run, reporting       how a plan's rows ended; the file's summary and page
"""
