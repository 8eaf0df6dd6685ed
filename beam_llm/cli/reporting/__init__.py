"""A run, or the jobs of a staging location, as one self-contained page.

    events ─► call_log ─┐
    run, spool, ledger ─┼► of_run, of_staging ─► page (data) ─► charts + page.html ─► one file
                        ┘
call_log      calls over time and their latencies, heard while a run works
page          what a page shows, as data; nothing of it is HTML
subject       what a run was about           savings       what it would have cost otherwise
of_run        … of a run                   of_staging    … of a ledger, for `beam-llm report`
shared        what both pages have
charts        inline SVG                   render        the page as HTML; everything is escaped
"""
