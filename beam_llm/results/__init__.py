"""From a job's result lines to outcomes of its records, and on to answers for a run's elements. It
calls no provider: `jobs/` decides when to collect, and fetches the lines.

    endings.py          what the end of a job means for lines without a reply
    result_reader.py    result lines → outcomes
    result_file.py      a file of them
    alike_lines.py      the same by the block, where lines are alike
    line_pattern.py     what such a line looks like
    prior_outcomes.py   what the job before says of the same records
    bill.py             what the replies used and cost
    join.py             back to this run's elements
"""
