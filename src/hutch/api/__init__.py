"""The HTTP doors of the control plane. One file per resource; each function there is one endpoint.

    app.py           the application: which routers, which middleware, start and stop
    main.py          the process: sockets, privileges, server
    services.py      what endpoints need: settings, database, host, tokens, images
    routing.py       how a path reaches an endpoint: `/api` and the root, versions, lean routes, OpenAPI
    body.py          reading bodies within bounds
    responses.py     writing answers: JSON, NDJSON and byte streams
    errors.py        the error tree → HTTP
    auth.py          tokens and what a caller may touch
    http_protocol.py bounds of connections and requests, below ASGI; socket_protocol.py of WebSockets, transports.py of both,
                     progress.py of what should get on
    host_events.py   following the host's events
    login.py         people who log in by a provider (`hutch.login`); login_pages.py: what their browsers show
    metrics.py       what is counted; otlp.py, telemetry.py: the same for a collector
    starts.py        sessions that are written and then started; sources.py: what they fetch first

    sandboxes · sessions · commands · files · interactive · snapshots · drives · images · tokens · own · system

An endpoint reads its request, asks `hutch.control` to decide, `hutch.storage` to remember and the host to act, and shapes the
answer. A warm command start touches no database: tokens and session owners are cached, and the host knows the rest.
"""
