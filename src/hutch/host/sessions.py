"""What is known of every session: in memory, in the journal, and to those who follow. Written first, then made known."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from hutch.errors import NotFoundError, NotReadyError
from hutch.host.commands import Commands
from hutch.host.journal import Journal, MachineEntry
from hutch.host.machine import Machine, gone
from hutch.host.protocol import LIVE, SessionEvent, SessionRecord, SessionStatus

log = logging.getLogger(__name__)

WRITE_AGAIN_S = 1.0


@dataclass(slots=True)
class Session:
    """A session and, while it lives, its machine. `ending` is done with the final record."""

    record: SessionRecord
    seq: int
    entry: MachineEntry | None = None
    machine: Machine | None = None
    commands: Commands | None = None
    timer: asyncio.TimerHandle | None = None
    ending: asyncio.Task[SessionRecord] | None = None
    saving: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def live(self) -> bool:
        return self.record.status in LIVE


class Sessions:
    """Every session of one host, those that ended within a day included."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._all: dict[str, Session] = {}
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[Session]:
        """As they are now: they may change meanwhile."""
        return iter(list(self._all.values()))

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._all

    # -- looking up --------------------------------------------------------------------------------

    def find(self, session_id: str) -> Session | None:
        return self._all.get(session_id)

    def get(self, session_id: str) -> Session:
        """Raises `NotFoundError`."""
        session = self._all.get(session_id)
        if session is None:
            raise NotFoundError("session_not_found", f"The host has no session '{session_id}'.")
        return session

    def running(self, session_id: str) -> tuple[Session, Commands]:
        """A session that takes requests. Raises `GoneError` when it ended, `NotReadyError` while it ends."""
        session = self.get(session_id)
        if session.machine is not None and session.commands is not None and session.ending is None:
            if session.machine.died.done():
                raise gone()
            return session, session.commands
        if session.record.status is SessionStatus.SNAPSHOTTING:
            raise NotReadyError("sandbox_snapshotting", "Sandbox is saving its files and no longer accepts commands.")
        if session.record.status is SessionStatus.STOPPING:
            raise NotReadyError("sandbox_stopping", "Sandbox is stopping and no longer accepts commands.")
        raise gone()

    @property
    def live(self) -> list[Session]:
        return [session for session in self._all.values() if session.live]

    async def events(self, after: int, send: Callable[[SessionEvent], Awaitable[None]]) -> None:
        """Send every change with a number above `after`, for ever; only the newest of each session."""
        while True:
            changed = sorted((s for s in self._all.values() if s.seq > after), key=lambda s: s.seq)
            for session in changed:
                after = max(after, session.seq)
                await send(SessionEvent(session.seq, session.record))
            if not any(session.seq > after for session in self._all.values()):
                waiting = self._changed
                await waiting.wait()

    # -- the journal -------------------------------------------------------------------------------

    def recall(self) -> None:
        """Read what a former host has written."""
        for seq, record, entry in self._journal.sessions():
            self._all[record.session_id] = Session(record, seq, entry)

    async def put(self, session: Session, record: SessionRecord) -> None:
        """Write a record of a session, which may be a new one: nobody finds or follows it yet."""
        assert session.entry is not None
        seq = self._journal.next_seq()
        session.record = record
        await self._journal.put_session(seq, record, session.entry)
        session.seq = seq

    def add(self, session: Session) -> None:
        """Have a session that was written be found."""
        self._all[session.record.session_id] = session

    def announce(self) -> None:
        """Tell those who follow that something was written."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self, session: Session, **fields: object) -> None:
        """Write a change, then make it known."""
        await self.put(session, msgspec.structs.replace(session.record, **fields))
        self.announce()

    async def write_end(self, session: Session, **fields: object) -> bool:
        """Like `change`, but a journal that can't be written (a full disk) does not keep a sandbox alive. Whether it was."""
        try:
            await self.change(session, **fields)
        except sqlite3.Error as error:
            log.error("the end of session %s could not be written: %s", session.record.session_id, error)
            return False
        return True

    async def write_again(self, session: Session) -> None:
        """Write what a session's record is now, as soon as the journal takes it."""
        while self._all.get(session.record.session_id) is session:
            if await self.write_end(session):
                return
            await asyncio.sleep(WRITE_AGAIN_S)

    async def forget(self, session_id: str) -> None:
        """Forget an ended session; nothing happens when there is none."""
        self._all.pop(session_id, None)
        await self._journal.delete_session(session_id)
