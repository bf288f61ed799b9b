"""`hutch serve`: a supervisor and its two children.

    supervisor (root)          binds the listening socket, keeps both children running, writes the ready file
      ├── hutch host (root)    owns the sandboxes
      └── API process (hutch)  speaks HTTP, keeps the database; sees nothing of the machine but what it was given

    layout.py      directories below the data directory: who owns what
    children.py    one child: environment, start, restart with back-off, stop
    supervisor.py  the whole
    ready.py       the ready file and `run/server.json`
    confine.py     how the API process shuts itself in and gives up root
    kernel.py      the system calls for that
    eager.py       what the API process imports before it does
    logs.py        log records on standard error

A clean stop goes from the outside in: the API drains, then the host stops its sandboxes. When the supervisor is killed instead,
the kernel kills both children with it, and the sandboxes run on until the next start adopts them.
"""
