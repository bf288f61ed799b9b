"""Workers: small programs that are synchronised, called, triggered and hooked, each run in a sandbox of its own.

    manifest ── what a worker declares: capabilities, databases, pacers, credentials
       │ checks, credentials, tool_schemas: what of it can't be meant        compare: what a deploy changes
       ▼
    run ── stdout ──▶ envelope ──▶ outcome ──▶ sync: which rows change, when the next run is due
                                        ├────▶ webhooks: what the sender sees, what is tried again
                                        └────▶ tools: what an agent gets

The modules that this names do no I/O: values in, decisions out, and nothing in them reads a clock or draws a random number.
`docs/workers-engine.md` says the same rules in words.

    reading       JSON that nobody trusts          values, schema   typed rows: encodings, migrations, relations
    pacers        requests per interval, shared    schedule         when a run is due
    oauth         addresses, states, expiry        changes, merge   what a sync wants to be written
    relations     pairs of rows, also pending      rows             upserts against declared properties
    environment   variables of a run
"""
