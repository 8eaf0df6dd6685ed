"""The command line `beam-llm`: files in, the same records with their answers out.

    main, parser, flags, exit_codes    arguments in, exit code out; failures in one line
    commands/                          the commands' arguments, one file each; code is imported late

    predict, predict_command           one run: inputs → pipeline → spool → files/writers
    inputs, show, estimate, retry      what is read before a model is asked, or instead of asking
    pipeline, storing, beam_run        the Beam side; imported only when a pipeline really runs
    spool, spool_index, stored         answers of a run that isn't finished, beside its output
    definitions                        whether the class of those answers is still the same
    running, progress                  what a person sees while it runs, and Ctrl-C
    tally, new_jobs, inspection        sums over answers; jobs of the run; answers and the truth
    summary, run_files, words          how it ended, on stderr and in files
    files/                             exact readers and writers of .jsonl, .csv, .parquet
    sql/, yaml/                        `beam-llm run`: pipelines from files
    comparing/                         asks a sample alone and packed: is packing safe?
    reporting/                         a run, or a staging location, as a page
    answer_tokens                      the expected length of an answer, for estimates and pages
    jobs, demo                         `beam-llm jobs …`, `beam-llm demo`

The path of one record: `files` reads it as a `Row`; `pipeline.ReadRecords` sends it with its place
and digest through `LLMPredict`; `pipeline.StoreAnswers` writes the prediction as a `StoredAnswer`
into the spool; `SpoolIndex` finds each record's best answer, and `files.writers` joins them by
place, once it is proved that no record has changed.
"""
