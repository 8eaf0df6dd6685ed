"""Records in, a request out; a reply in, answers out. Pure: no I/O, no clock, no provider.

    chat_task       one use of a chat model, compiled: a `protocols.Task`
    session_task    the same in sessions: each prompt includes the turns before it
    reduce_task     one answer over many records: a tree of prompts that fit
    embed_task      one use of an embedding model, compiled       vectors   as bytes
    templates       the user's prompt over an element's fields    sandbox   within bounds
    text            values and records as a prompt shows them     tokens    how long they are
    batching        how many records share a prompt               agreement whether answers agree
    model_choice    which model a record is for
    media           fields with images, beside the texts          image_files  what they are
    prompt_text     the user message about 1…n records
    reply_format    how a reply is asked for: its schema          reply_words   and in words
    reply_shape     where answers are in it, by the settings, and the reader of such replies
    readers/        a reply's text → answers by index             reply_reader  → a Reading
    typed_answers   an answer as its format spells it → its typed value
    output_types    the type of an answer                         type_checker    a Python type
    answer_rules    what no answer can be                         schema_checker  a JSON schema
    main_classes    types of the main program, prepared for workers
    schemas         JSON schemas as data                          fitting   which of a union fits

A record's way: `ChatTask.record` makes it of an element, a `Batcher` puts it beside others,
`ChatTask.render` asks about them all, and `ChatTask.read` finds its answer in the reply, or says
why there is none.
"""
