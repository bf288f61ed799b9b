"""The control plane's database: names, tenants, sandboxes, sessions. SQLite for one machine, PostgreSQL for fleets.

    models.py     tables
    migrate.py    brings a database to the newest schema; migrations/versions holds the steps
    database.py   engines and transactions
    sealing.py    encryption of columns that hold secrets, with a key outside the database
    tenants.py    teams and projects
    tokens.py     issued tokens and their revocation
    members.py    who belongs to a team; logins.py: logins that go on
    sandboxes.py  named sandboxes
    network_policies.py, credentials.py
                  what may hold secrets of tenants, in sealed columns
    network_bounds.py
                  policies of teams and projects, within which those of sandboxes hold
    sessions.py   their runs, and what hosts report about them
    drives.py     drives, and which live sessions have them
    hosts.py      how far each host's events were applied

Functions take an open connection first and, where rows belong to a tenant, a `Scope` second; none returns a row outside it.
They return the frozen values of `hutch.control.records`. The same contract tests run on both databases.
"""
