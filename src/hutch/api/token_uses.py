"""When tokens were used, from where, and how often. Counted in memory and written once a minute, so that it costs requests
nothing; the death of the process loses at most the last minute."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

from hutch.control.records import TokenRecord
from hutch.errors import HutchError
from hutch.storage import tokens
from hutch.storage.database import Database

WRITE_EVERY_S = 60.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Use:
    count: int
    at: int
    address: str


class TokenUses:
    """Uses that are not written yet."""

    def __init__(self) -> None:
        self._due: dict[str, _Use] = {}

    def count(self, token_id: str, at: int, address: str) -> None:
        """A request came with a token."""
        use = self._due.get(token_id)
        if use is None:
            self._due[token_id] = _Use(1, at, address)
        else:
            use.count, use.at, use.address = use.count + 1, at, address

    def shown(self, record: TokenRecord) -> TokenRecord:
        """A token with the uses that its row does not have yet."""
        use = self._due.get(record.id)
        if use is None:
            return record
        return replace(record, use_count=record.use_count + use.count, last_used_at=use.at, last_used_address=use.address)

    async def write(self, database: Database) -> None:
        """Write what is due. Raises `UnavailableError`; it is due again then."""
        due, self._due = self._due, {}
        if not due:
            return
        try:
            async with database.write() as connection:
                for token_id, use in due.items():
                    await tokens.used(connection, token_id, use.count, use.at, use.address)
        except BaseException:
            for token_id, use in due.items():
                later = self._due.get(token_id, _Use(0, use.at, use.address))
                self._due[token_id] = _Use(use.count + later.count, later.at, later.address)
            raise


async def keep_written(uses: TokenUses, database: Database) -> None:
    """Write them for ever."""
    while True:
        await asyncio.sleep(WRITE_EVERY_S)
        try:
            await uses.write(database)
        except HutchError as error:
            log.warning("the uses of tokens can't be written yet: %s", error.message)
