"""An emulated provider on loopback: it has scripted faults, and counts what it bills.

    client ─► server ─► service ─► a dialect ─► service.live ─► a model ─► billing
                                       └──────► batches ─► clockwork ─► work ─┘

    server, process, command      the emulator in a thread, in its own process, on the command line
    options, faults, limits       what can be set; what goes wrong, and when; rate limits
    service, connection           what calls of all dialects have in common; broken connections
    dialects                      what a dialect is, and how to add one
    models, chat, embedder        the emulated models, which take OpenAI's bodies
    reading, brain, pictures      how they read a prompt, answer it, and see an image
    spoken_rules                  rules for an answer that a schema states in words only
    batches, clockwork, work      batch jobs: their routes, their states, their lines
    files                         /files, which hold lines and results
    buckets, objects, gcs, s3     gs:// and s3:// buckets, which hold them too
    billing                       how often each record was billed
    wire, shapes                  responses and errors; checks of a body's shape
    aws_signatures, small_files   signed requests; files that a kill leaves intact

The dialects: openai (and Azure), responses, family (Groq, Together, DeepInfra), fireworks,
openrouter, xai, mistral; anthropic with anthropic_rules; gemini and vertex with generate_content,
embed_content, gemini_files; bedrock with converse, embed_invoke.
"""
