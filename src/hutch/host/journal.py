"""The host's journal: what it must know again after its own death.

One SQLite file in WAL mode, written by one thread. Writes that are asked for while a transaction runs are put together in
the next one, so a busy host pays one commit for many changes. An awaited write is acknowledged: it survives the death of
every process of ours.

Only what can't be found again is here: sessions with the machine they run on, snapshots, drives, images of registries, commands,
what holds for a session's network (sealed), what passed there, what sessions used, budgets, and notices of them. Machines without
a session (the pool) are not written down; after a restart they are orphans and are removed.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hutch.host.protocol import LIVE, CommandRecord, DriveRecord, NumberedWindow, SessionRecord, SnapshotRecord
from hutch.metering import budgets
from hutch.metering.budgets import Budget, Span
from hutch.metering.notices import NumberedNotice
from hutch.metering.quantities import Quantities

R = TypeVar("R")
BUSY_TIMEOUT_S = 30
SCHEMA_VERSION = 7
_VERSION = f"pragma user_version={SCHEMA_VERSION};"
_READABLE = (0, 1, 2, 3, 4, 5, 6, 7)
_SCHEMA = """
create table if not exists meta (key text primary key, value text not null) without rowid;
create table if not exists sessions (
    session_id text primary key,
    seq integer not null unique,
    record blob not null,
    machine blob not null,
    ended_at integer
) without rowid;
create index if not exists sessions_ended on sessions (ended_at) where ended_at is not null;
create table if not exists session_commands (
    session_id text not null,
    command_id text not null,
    record blob not null,
    primary key (session_id, command_id)
) without rowid;
create table if not exists snapshots (snapshot_id text primary key, record blob not null, deleted integer not null) without rowid;
create table if not exists drives (drive_id text primary key, record blob not null, deleted integer not null) without rowid;
create table if not exists egress (session_id text primary key, state blob not null) without rowid;
create table if not exists images (digest text primary key, record blob not null) without rowid;
create table if not exists image_names (
    project_id text not null,
    name text not null,
    record blob not null,
    primary key (project_id, name)
) without rowid;
create table if not exists traffic (session_id text primary key, totals blob not null) without rowid;
create table if not exists meters (session_id text primary key, meter blob not null) without rowid;
create table if not exists usage_windows (seq integer primary key, record blob not null);
create table if not exists spending (
    key text not null,
    period text not null,
    quantities blob not null,
    primary key (key, period)
) without rowid;
create table if not exists budgets (
    key text not null,
    period text not null,
    record blob not null,
    primary key (key, period)
) without rowid;
create table if not exists notices (
    notice_id text primary key,
    seq integer not null unique,
    key text not null,
    record blob not null
) without rowid;
"""


# A command was its session's own before sessions could go on from another one's memory.
_UPGRADES = {
    5: """
insert into session_commands select session_id, command_id, record from commands;
drop table commands;
""",
}


class MachineEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to find a session's machine again. `cpu_zero_us` is the cgroup's counter at the claim,
    `image_bytes` the size of its image, `inherited_bytes` that of the snapshot that its layer began with, `fingerprint` what its
    memory needs to go on when it is saved (empty: an older release started it)."""

    machine_id: str
    pid: int
    start_ticks: int
    network: int
    token: str
    cpu_zero_us: int
    layer: str
    image_bytes: int = 0
    inherited_bytes: int = 0
    fingerprint: str = ""


class ImageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An image that was pulled or built: `digest` is that of its manifest, `layers` are digests and sizes of EROFS files, the
    bottom one first. The rest is what it says about itself, with the user looked up."""

    digest: str
    layers: list[tuple[str, int]]
    user: str
    uid: int
    gid: int
    groups: list[int]
    home: str
    cwd: str
    env: dict[str, str]
    labels: dict[str, str] = {}
    cmd: list[str] = []
    entrypoint: list[str] = []
    created_at: int = 0


class ImageName(msgspec.Struct, frozen=True, kw_only=True):
    """What a project calls an image; `project_id` "" is everybody. `index_digest` is that of the index that it was chosen from,
    `source` where it came from."""

    project_id: str
    name: str
    digest: str
    source: str
    pulled_at: int
    index_digest: str = ""


Operation = Callable[[sqlite3.Connection], None]
K = TypeVar("K", SnapshotRecord, DriveRecord)


class JournalDamaged(OSError):
    """The journal can't be read."""


class Journal:
    """Opens, reads (before the writer runs) and writes the journal."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[tuple[Operation, asyncio.Future[None] | None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seq = 0

    # -- start and end -----------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=normal")
        return connection

    def open(self) -> None:
        """Make or check the file. Raises `JournalDamaged`."""
        try:
            connection = self._connect()
            try:
                version = connection.execute("pragma user_version").fetchone()[0]
                if version not in _READABLE:
                    raise JournalDamaged(f"{self._path} has version {version}; this release reads version {SCHEMA_VERSION}.")
                upgrades = [script for to, script in _UPGRADES.items() if 0 < version < to]
                connection.executescript("".join(["begin immediate;", _SCHEMA, *upgrades, _VERSION, "commit;"]))
                self._seq = connection.execute("select coalesce(max(seq), 0) from sessions").fetchone()[0]
                stored = connection.execute("select value from meta where key = 'seq'").fetchone()
                self._seq = max(self._seq, int(stored[0]) if stored else 0)
            finally:
                connection.close()
        except sqlite3.DatabaseError as error:
            raise JournalDamaged(
                f"The host's journal {self._path} can't be read: {error}. Move it away to start without its sessions; "
                "their sandboxes are then removed."
            ) from error

    def start(self) -> None:
        """Start the writer; from here on reads are not allowed."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._write_all, name="journal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is queued, then end the writer. Blocks."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    # -- reading -----------------------------------------------------------------------------------

    def sessions(self) -> list[tuple[int, SessionRecord, MachineEntry]]:
        connection = self._connect()
        try:
            rows = connection.execute("select seq, record, machine from sessions order by seq").fetchall()
            return [
                (seq, msgspec.msgpack.decode(record, type=SessionRecord), msgspec.msgpack.decode(machine, type=MachineEntry))
                for seq, record, machine in rows
            ]
        finally:
            connection.close()

    def commands(self) -> list[CommandRecord]:
        return self._read_records("session_commands", CommandRecord)

    def snapshots(self) -> dict[str, tuple[SnapshotRecord, bool]]:
        """Each snapshot, and whether its removal has begun."""
        return self._kept("select snapshot_id, record, deleted from snapshots", SnapshotRecord)

    def drives(self) -> dict[str, tuple[DriveRecord, bool]]:
        """Each drive, and whether its removal has begun."""
        return self._kept("select drive_id, record, deleted from drives", DriveRecord)

    def _kept(self, query: str, kind: type[K]) -> dict[str, tuple[K, bool]]:
        connection = self._connect()
        try:
            rows = connection.execute(query).fetchall()
            return {name: (msgspec.msgpack.decode(record, type=kind), bool(gone)) for name, record, gone in rows}
        finally:
            connection.close()

    def images(self) -> list[ImageEntry]:
        return self._read_records("images", ImageEntry)

    def image_names(self) -> list[ImageName]:
        return self._read_records("image_names", ImageName)

    def _read_records(self, table: str, kind: type[R]) -> list[R]:
        connection = self._connect()
        try:
            rows = connection.execute(f"select record from {table}").fetchall()  # noqa: S608 - a name of ours
            return [msgspec.msgpack.decode(record, type=kind) for (record,) in rows]
        finally:
            connection.close()

    def last_window(self) -> int:
        """The highest number of a usage window."""
        connection = self._connect()
        try:
            kept: int = connection.execute("select coalesce(max(seq), 0) from usage_windows").fetchone()[0]
            forgotten = connection.execute("select value from meta where key = 'windows'").fetchone()
            return max(kept, int(forgotten[0]) if forgotten else 0)
        finally:
            connection.close()

    def meters(self, kind: type[R]) -> dict[str, R]:
        """The meter of each session."""
        connection = self._connect()
        try:
            rows = connection.execute("select session_id, meter from meters").fetchall()
            return {session_id: msgspec.msgpack.decode(meter, type=kind) for session_id, meter in rows}
        finally:
            connection.close()

    def spending(self) -> dict[tuple[str, Span], Quantities]:
        """What each key used in each span, by closed windows."""
        connection = self._connect()
        try:
            rows = connection.execute("select key, period, quantities from spending").fetchall()
            return {(key, Span.parse(span)): msgspec.msgpack.decode(used, type=Quantities) for key, span, used in rows}
        finally:
            connection.close()

    def budgets(self) -> list[Budget]:
        return self._read_records("budgets", Budget)

    def notices(self) -> list[NumberedNotice]:
        return self._read_records("notices", NumberedNotice)

    def egress(self) -> dict[str, bytes]:
        """What holds for each session's network, sealed."""
        connection = self._connect()
        try:
            return dict(connection.execute("select session_id, state from egress").fetchall())
        finally:
            connection.close()

    def meta(self, key: str) -> str | None:
        connection = self._connect()
        try:
            row = connection.execute("select value from meta where key = ?", (key,)).fetchone()
            return row[0] if row else None
        finally:
            connection.close()

    # -- writing -----------------------------------------------------------------------------------

    def next_seq(self) -> int:
        """The number of the next change of a session."""
        self._seq += 1
        return self._seq

    @property
    def last_seq(self) -> int:
        return self._seq

    async def put_session(self, seq: int, record: SessionRecord, machine: MachineEntry) -> None:
        """A session; with its end, what it left."""
        values = (record.session_id, seq, msgspec.msgpack.encode(record), msgspec.msgpack.encode(machine), record.stopped_at)
        left = record.snapshot if record.status not in LIVE else None

        def put(connection: sqlite3.Connection) -> None:
            connection.execute("insert or replace into sessions values (?, ?, ?, ?, ?)", values)
            if left is not None:
                # A removal that has begun goes on.
                row = (left.snapshot_id, msgspec.msgpack.encode(left))
                connection.execute(
                    "insert into snapshots values (?, ?, 0) on conflict do update set record = excluded.record", row
                )

        await self._write(put)

    async def put_snapshot(self, record: SnapshotRecord, *, deleted: bool = False) -> None:
        values = (record.snapshot_id, msgspec.msgpack.encode(record), deleted)
        await self._write(lambda c: _execute(c, "insert or replace into snapshots values (?, ?, ?)", values))

    async def delete_snapshot(self, snapshot_id: str) -> None:
        await self._write(lambda c: _execute(c, "delete from snapshots where snapshot_id = ?", (snapshot_id,)))

    async def put_drive(self, record: DriveRecord, *, deleted: bool = False) -> None:
        values = (record.drive_id, msgspec.msgpack.encode(record), deleted)
        await self._write(lambda c: _execute(c, "insert or replace into drives values (?, ?, ?)", values))

    async def delete_drive(self, drive_id: str) -> None:
        await self._write(lambda c: _execute(c, "delete from drives where drive_id = ?", (drive_id,)))

    async def put_image(self, entry: ImageEntry) -> None:
        values = (entry.digest, msgspec.msgpack.encode(entry))
        await self._write(lambda c: _execute(c, "insert or replace into images values (?, ?)", values))

    async def delete_image(self, digest: str) -> None:
        await self._write(lambda c: _execute(c, "delete from images where digest = ?", (digest,)))

    async def put_image_name(self, name: ImageName) -> None:
        values = (name.project_id, name.name, msgspec.msgpack.encode(name))
        await self._write(lambda c: _execute(c, "insert or replace into image_names values (?, ?, ?)", values))

    async def delete_image_name(self, project_id: str, name: str) -> None:
        values = (project_id, name)
        await self._write(lambda c: _execute(c, "delete from image_names where project_id = ? and name = ?", values))

    async def put_egress(self, session_id: str, state: bytes) -> None:
        await self._write(lambda c: _execute(c, "insert or replace into egress values (?, ?)", (session_id, state)))

    async def delete_egress(self, session_id: str) -> None:
        await self._write(lambda c: _execute(c, "delete from egress where session_id = ?", (session_id,)))

    async def put_traffic(self, session_id: str, totals: bytes) -> None:
        await self._write(lambda c: _execute(c, "insert or replace into traffic values (?, ?)", (session_id, totals)))

    async def traffic(self, session_id: str) -> bytes | None:
        """What passed for a session, as it was last written; read by the writer, so after all that was asked for before."""
        found: list[tuple[bytes]] = []
        statement = "select totals from traffic where session_id = ?"
        await self._write(lambda c: found.extend(c.execute(statement, (session_id,)).fetchall()))
        return found[0][0] if found else None

    async def put_window(
        self, numbered: NumberedWindow, meter: msgspec.Struct, spending: dict[tuple[str, Span], Quantities]
    ) -> None:
        """A closed window, the meter after it, and what was spent with it: all or nothing."""
        session_id = numbered.window.session_id
        encode = msgspec.msgpack.encode
        sums = [(key, span.text, encode(used)) for (key, span), used in spending.items()]

        def put(connection: sqlite3.Connection) -> None:
            connection.execute("insert into usage_windows values (?, ?)", (numbered.seq, encode(numbered)))
            connection.execute("insert or replace into meters values (?, ?)", (session_id, encode(meter)))
            connection.executemany("insert or replace into spending values (?, ?, ?)", sums)

        await self._write(put)

    async def windows(self, after: int, limit: int = 1000) -> list[NumberedWindow]:
        """The next windows with numbers above one, read by the writer: all that were acknowledged are there."""
        found: list[tuple[bytes]] = []
        statement = "select record from usage_windows where seq > ? order by seq limit ?"
        await self._write(lambda c: found.extend(c.execute(statement, (after, limit)).fetchall()))
        return [msgspec.msgpack.decode(record, type=NumberedWindow) for (record,) in found]

    async def forget_windows(self, seq: int, spending: Collection[tuple[str, Span]], last: int) -> None:
        """Forget windows up to a number, and what keys spent in these spans; numbers go on above `last`."""
        places = [(key, span.text) for key, span in spending]

        def forget(connection: sqlite3.Connection) -> None:
            connection.execute("insert or replace into meta values ('windows', ?)", (str(last),))
            connection.execute("delete from usage_windows where seq <= ?", (seq,))
            connection.executemany("delete from spending where key = ? and period = ?", places)

        await self._write(forget)

    async def forget_usage(self, keys: Collection[str], sessions: Collection[str], last: int) -> None:
        """Forget spending, budgets, notices and windows of the owners with these keys, and meters of these sessions; numbers go
        on above `last`."""

        def forget(connection: sqlite3.Connection) -> None:
            connection.execute("insert or replace into meta values ('windows', ?)", (str(last),))
            kept = connection.execute("select seq, record from usage_windows")
            windows = [seq for seq, record in kept if not _owners(record).isdisjoint(keys)]
            connection.executemany("delete from usage_windows where seq = ?", [(seq,) for seq in windows])
            connection.executemany("delete from meters where session_id = ?", [(session_id,) for session_id in sessions])
            for table in ("spending", "budgets", "notices"):
                connection.executemany(f"delete from {table} where key = ?", [(key,) for key in keys])  # noqa: S608 - a name of ours

        await self._write(forget)

    async def put_budget(self, budget: Budget, *, remove: bool = False) -> None:
        place = (budget.key, budget.period.value)
        if remove:
            await self._write(lambda c: _execute(c, "delete from budgets where key = ? and period = ?", place))
        else:
            values = (*place, msgspec.msgpack.encode(budget))
            await self._write(lambda c: _execute(c, "insert or replace into budgets values (?, ?, ?)", values))

    async def put_notices(self, notices: Sequence[NumberedNotice]) -> None:
        """All or none."""
        rows = [(told.notice.id, told.seq, told.notice.key, msgspec.msgpack.encode(told)) for told in notices]

        def put(connection: sqlite3.Connection) -> None:
            connection.executemany("insert or replace into notices values (?, ?, ?, ?)", rows)

        await self._write(put)

    async def read_notices(self, after: int, limit: int = 1000) -> list[NumberedNotice]:
        """The next notices with numbers above one, read by the writer: all that were acknowledged are there."""
        found: list[tuple[bytes]] = []
        statement = "select record from notices where seq > ? order by seq limit ?"
        await self._write(lambda c: found.extend(c.execute(statement, (after, limit)).fetchall()))
        return [msgspec.msgpack.decode(record, type=NumberedNotice) for (record,) in found]

    async def delete_notices(self, notice_ids: Collection[str]) -> None:
        rows = [(notice_id,) for notice_id in notice_ids]

        def delete(connection: sqlite3.Connection) -> None:
            connection.executemany("delete from notices where notice_id = ?", rows)

        await self._write(delete)

    async def put_command(self, record: CommandRecord) -> None:
        values = (record.session_id, record.command_id, msgspec.msgpack.encode(record))
        await self._write(lambda c: _execute(c, "insert or replace into session_commands values (?, ?, ?)", values))

    async def delete_command(self, session_id: str, command_id: str) -> None:
        values = (session_id, command_id)
        await self._write(lambda c: _execute(c, "delete from session_commands where session_id = ? and command_id = ?", values))

    async def command(self, session_id: str, command_id: str) -> CommandRecord | None:
        """A command as it was last written, also of a session that is over; read by the writer."""
        found: list[tuple[bytes]] = []
        statement = "select record from session_commands where session_id = ? and command_id = ?"
        await self._write(lambda c: found.extend(c.execute(statement, (session_id, command_id)).fetchall()))
        return msgspec.msgpack.decode(found[0][0], type=CommandRecord) if found else None

    async def put_meta(self, key: str, value: str) -> None:
        await self._write(lambda c: _execute(c, "insert or replace into meta values (?, ?)", (key, value)))

    async def delete_session(self, session_id: str) -> None:
        """Forget an ended session and its commands; numbers go on from where they were."""
        last = str(self._seq)

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("delete from session_commands where session_id = ?", (session_id,))
            connection.execute("delete from egress where session_id = ?", (session_id,))
            connection.execute("delete from traffic where session_id = ?", (session_id,))
            connection.execute("delete from meters where session_id = ?", (session_id,))
            connection.execute("delete from sessions where session_id = ?", (session_id,))
            connection.execute("insert or replace into meta values ('seq', ?)", (last,))

        await self._write(delete)

    async def scrub(self) -> None:
        """Rewrite the file, so that nothing of what was deleted is left in it. Raises `sqlite3.Error`."""
        await self._write(_rewrite)

    async def _write(self, operation: Operation) -> None:
        assert self._loop is not None, "the journal was not started"
        future: asyncio.Future[None] = self._loop.create_future()
        self._queue.put((operation, future))
        await future

    def _write_all(self) -> None:
        connection = self._connect()
        loop = self._loop
        assert loop is not None
        ended = False
        while not ended:
            batch = []
            item = self._queue.get()
            while True:
                if item is None:
                    ended = True
                    break
                batch.append(item)
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            # Rewriting is no part of a transaction.
            rewriting = [future for operation, future in batch if operation is _rewrite]
            batch = [(operation, future) for operation, future in batch if operation is not _rewrite]
            if batch:
                failure = _commit(connection, [operation for operation, _ in batch])
                loop.call_soon_threadsafe(_acknowledge, [future for _, future in batch], failure)
            if rewriting:
                loop.call_soon_threadsafe(_acknowledge, rewriting, _attempt(connection, _rewrite))
        connection.close()


def _commit(connection: sqlite3.Connection, operations: list[Operation]) -> BaseException | None:
    try:
        connection.execute("begin immediate")
        for operation in operations:
            operation(connection)
        connection.execute("commit")
    except Exception as error:  # noqa: BLE001 - it is given to whoever waits
        # Whatever it is: without this thread nothing would be written any more.
        if connection.in_transaction:
            connection.execute("rollback")
        return error
    return None


def _attempt(connection: sqlite3.Connection, operation: Operation) -> BaseException | None:
    try:
        operation(connection)
    except Exception as error:  # noqa: BLE001 - as above
        return error
    return None


def _rewrite(connection: sqlite3.Connection) -> None:
    connection.execute("pragma temp_store=memory")
    # Everybody's writes wait meanwhile; better to be asked again than to wait for a reader.
    connection.execute("pragma busy_timeout=1000")
    try:
        connection.execute("vacuum")
        if connection.execute("pragma wal_checkpoint(truncate)").fetchone()[0]:
            raise sqlite3.OperationalError("somebody reads it")
    finally:
        connection.execute(f"pragma busy_timeout={BUSY_TIMEOUT_S * 1000}")


def _acknowledge(futures: list[asyncio.Future[None] | None], failure: BaseException | None) -> None:
    for future in futures:
        if future is None or future.done():
            continue
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)


def _owners(window: bytes) -> set[str]:
    return set(budgets.keys(msgspec.msgpack.decode(window, type=NumberedWindow).owner))


def _execute(connection: sqlite3.Connection, statement: str, values: tuple[Any, ...]) -> None:
    connection.execute(statement, values)
