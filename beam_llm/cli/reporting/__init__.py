"""A run, or the jobs of a staging location, as one self-contained page.

    events ─► call_log ─┐
    run, spool, ledger ─┼► run_page, staging_page ─► page (data) ─► charts + page.html ─► one file
                        ┘
call_log      calls over time and their latencies, recorded while a run works
page          what a page shows, as data without HTML
subject       what a run was about           savings       what it would have cost otherwise
run_page      the page of a run            staging_page  the page of `beam-llm report`
shared        what both pages have
charts        inline SVG                   render        the page as HTML; everything is escaped
"""
