"""A small asynchronous client of the sandbox API: what the command line, the benchmarks and the tests use.

    places.py     which server to talk to, and with which token
    transport.py  one HTTP connection pool; error answers become `hutch.errors`
    models.py     what the API answers
    sandboxes.py  named sandboxes and their sessions
    commands.py   processes: waited, detached, streamed
    files.py      bytes in and out
    terminal.py   a terminal over a WebSocket
    snapshots.py, drives.py
                  files that sessions left; file systems that sandboxes mount
    credentials.py, audit.py
                  what rules of network policies add to requests, what the egress firewall decided, and what passed
    bounds.py     network policies of teams and projects
    tokens.py     tokens
    images.py     images, and logins at registries

Programs of users are better served by the vendor's SDKs, which work unmodified (`hutch env`); this client has no
resume, no paging helpers beyond `all`, and retries nothing.
"""

from hutch.client.client import Client
from hutch.client.commands import Finished, Output, Started
from hutch.client.models import Command, Created, Page, Route, Sandbox, Session
from hutch.client.places import Server, find_server, server_file

__all__ = [
    "Client",
    "Command",
    "Created",
    "Finished",
    "Output",
    "Page",
    "Route",
    "Sandbox",
    "Server",
    "Session",
    "Started",
    "find_server",
    "server_file",
]
