"""Log records on standard error, one line each."""

from __future__ import annotations

import logging
import sys

from hutch.settings import LogLevel

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def configure_logging(level: LogLevel) -> None:
    logging.basicConfig(level=str(level).upper(), format=FORMAT, stream=sys.stderr, force=True)
    # A client that talks nonsense is its own problem, not a line in our log for each request.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    for chatty in ("asyncio", "aiosqlite", "alembic", "websockets"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
