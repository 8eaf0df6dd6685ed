"""Turns a job's result lines into outcomes of its records, and those into answers for a run's
elements. It calls no provider: `jobs/` decides when to collect, and fetches the lines.

    endings.py          what the end of a job means for lines without a reply
    result_reader.py    result lines → outcomes
    result_file.py      a file of result lines
    alike_lines.py      blocks of lines at a time, where lines are alike
    line_pattern.py     what such lines look like
    prior_outcomes.py   outcomes that the parent job passed on with its records
    bill.py             what the replies used and cost
    join.py             outcomes → answers for this run's elements
"""
