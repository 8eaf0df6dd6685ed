"""A provider on loopback, with scripted faults, that counts what it bills.

    client ─► server ─► service ─► a dialect ─► service.live ─► a model ─► billing
                                       └──────► batches ─► clockwork ─► work ─┘

    server, process, command      in a thread, in a process of its own, on the command line
    options, faults, limits       what can be set; what goes wrong, and when; 429s
    service, connection           what calls of all dialects go through; how a connection fails
    dialects                      what a dialect is, and how to add one
    models, chat, embedder        the emulated models, asked in OpenAI's words
    reading, brain, pictures      how they read a prompt, answer it, and see an image
    batches, clockwork, work      jobs: their routes, their states, their lines
    files                         /files: where lines and results are
    buckets, objects, gcs, s3     gs:// and s3:// likewise
    billing                       who was billed how often
    wire, shapes                  responses and errors; bodies held to their shape
    aws_signatures, small_files   signed requests; files that a kill leaves whole

The dialects: openai (and Azure), responses, family (Groq, Together, DeepInfra), fireworks,
openrouter, xai, mistral; anthropic with anthropic_rules; gemini and vertex with generate_content,
embed_content, gemini_files; bedrock with converse, embed_invoke.
"""
