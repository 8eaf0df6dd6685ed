"""The command line `beam-llm`: files in, the same records with their answers out.

    main, parser, flags, exit_codes    arguments in, exit code out; failures in one line
    commands/                          the commands' arguments, one file each; code is imported late

    predict, predict_command           one run: inputs → pipeline → spool → files/writers
    inputs, show, estimate, retry      what is read, before or instead of asking
    pipeline, storing, beam_run        the Beam side; imported only when a pipeline really runs
    spool, spool_index, stored         answers of a run that isn't finished, beside its output
    running, progress, summary         what a person sees, and Ctrl-C; with tally and words
    definitions                        whether the class of earlier answers is still the same
    files/                             exact readers and writers of .jsonl, .csv, .parquet
    comparing/                         a sample asked alone and packed: is packing safe?
    reporting/                         a run, or a staging location, as a page; with hindsight
    jobs, demo                         `beam-llm jobs …`, `beam-llm demo`

The walk of one record: `files` reads it as a `Row`; `pipeline.ReadRecords` sends it with its place
and digest through `LLMPredict`; `pipeline.StoreAnswers` writes the prediction as a `StoredAnswer`
into the spool; `SpoolIndex` finds each record's best answer, and `files.writers` joins them by
place, once every record is proved to be what it was.
"""
