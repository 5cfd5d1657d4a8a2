"""The embedded engine: Ollama's HTTP API over llama.cpp in this process, with a small real model.

    options.py     option and duration values, judged as Ollama judges them      (pure)
    bodies.py      the JSON bodies of requests, with Ollama's error texts        (pure)
    prompts.py     the ChatML template, and what is cut from a prompt too long   (pure)
    gguf.py        the facts in a model file's header
    weights.py     where the model file is, and how it gets there, once
    manifests.py   names of models, and the lists of their blobs                 (pure)
    store.py       the files of an Ollama store
    pull.py        a model's way from one store into another
    models.py      what is served: one file, or what is in a store
    llama.py       the only file that knows xllamacpp: load, tokenize, complete
    runner.py      who runs now, who waits, what is loaded and until when
    peer.py        whether the client at the other end is still there
    wire.py        one HTTP connection: read a body, answer with JSON or with one record a line
    generation.py  one request to generate, from its options to its last record
    hosts.py       which Host and Origin headers are answered                    (pure)
    api.py         the routes

It is an optional install, for trying and testing without Ollama and without a Raspberry Pi, and names itself for what
it is.
"""
