"""What the API process imports before it gives up the right to read the installation.

Most modules are imported by name at the top of the files that use them; these are the ones that libraries only import when
they first need them.
"""

from __future__ import annotations

import importlib

from hutch.settings import Settings

_LATE = (
    "encodings.idna",
    "hutch.egress.hutch_native",
    "hutch.images",
    "jwt.algorithms",
    "multiprocessing.util",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "starlette.websockets",
    "uvicorn.lifespan.off",
    "uvicorn.logging",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "websockets.extensions.permessage_deflate",
)
_POSTGRESQL = ("asyncpg", "asyncpg.pgproto.types", "sqlalchemy.dialects.postgresql.asyncpg")


def import_everything(settings: Settings) -> None:
    for name in _LATE:
        importlib.import_module(name)
    if settings.database_url().startswith("postgresql"):
        for name in _POSTGRESQL:
            importlib.import_module(name)
