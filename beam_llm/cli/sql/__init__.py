"""Runs a SQL file's plans: tables are files, answers are kept until all are there, as `predict`
keeps them.

    command, dry_run          the command; what it would do
    run, pipeline             statement by statement; one in Beam
    looking, groups, rows     a plan's source before anything is paid, and row by row
    sorting                   ORDER BY, of what is read or of what comes out
    destinations, outputs     where rows go; the files that hold them
    ends, reporting           how a plan's rows ended; the file's summary and page
"""
