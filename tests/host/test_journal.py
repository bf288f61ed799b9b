"""The journal: what was acknowledged is there after any death, and numbers never go back."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from hutch.host.journal import Journal, JournalDamaged, MachineEntry
from hutch.host.protocol import CommandRecord, SessionRecord, SessionStatus

ENTRY = MachineEntry(machine_id="m" + "0" * 20, pid=1, start_ticks=2, network=3, token="t", cpu_zero_us=4, layer="l")


def record(session_id: str, status: SessionStatus = SessionStatus.RUNNING) -> SessionRecord:
    return SessionRecord(
        session_id=session_id,
        sandbox_name="name",
        project_id="project",
        status=status,
        image="image",
        cwd="/",
        vcpus=1,
        memory_mb=2048,
        timeout_ms=1000,
        requested_at=5,
    )


def command(command_id: str, session_id: str) -> CommandRecord:
    return CommandRecord(command_id=command_id, session_id=session_id, argv=[b"\xff\xfe", b""], cwd=b"/", started_at=1)


async def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.open()
    journal.start()
    seqs = [journal.next_seq() for _ in range(100)]
    await asyncio.gather(*(journal.put_session(seq, record(f"s{seq}"), ENTRY) for seq in seqs))
    await journal.put_command(command("c1", "s1"))
    await journal.put_meta("address_block", "7")
    journal.close()

    again = Journal(tmp_path / "journal.db")
    again.open()
    assert [(seq, entry.session_id) for seq, entry, _ in again.sessions()] == [(seq, f"s{seq}") for seq in seqs]
    assert again.sessions()[0][2] == ENTRY
    assert again.commands() == [command("c1", "s1")]
    assert again.meta("address_block") == "7"
    assert again.next_seq() == 101


async def test_numbers_go_on_after_the_newest_session_was_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.open()
    journal.start()
    await journal.put_session(journal.next_seq(), record("s1"), ENTRY)
    await journal.put_command(command("c1", "s1"))
    await journal.delete_session("s1")
    journal.close()
    again = Journal(tmp_path / "journal.db")
    again.open()
    assert again.sessions() == []
    assert again.commands() == []
    assert again.next_seq() == 2


async def test_a_rewritten_journal_holds_nothing_of_what_was_forgotten_and_everything_else(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.open()
    journal.start()
    for name in ("canary-2f9d", "kept"):
        await journal.put_session(journal.next_seq(), record(name), ENTRY)
        await journal.put_command(command(f"c-{name}", name))
    await journal.delete_session("canary-2f9d")
    # Writes that are asked for at the same time are all done.
    await asyncio.gather(journal.put_meta("a", "1"), journal.scrub(), journal.put_meta("b", "2"), journal.scrub())
    content = path.read_bytes() + (tmp_path / "journal.db-wal").read_bytes()
    assert b"canary-2f9d" not in content
    assert b"kept" in content
    journal.close()
    again = Journal(path)
    again.open()
    assert [entry.session_id for _, entry, _ in again.sessions()] == ["kept"]
    assert (again.meta("a"), again.meta("b")) == ("1", "2")


async def test_a_journal_that_somebody_reads_is_not_rewritten_yet(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.open()
    journal.start()
    await journal.put_meta("a", "1")
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as reader:
        reader.execute("begin")
        reader.execute("select * from meta").fetchall()
        await journal.put_meta("a", "2")
        with pytest.raises(sqlite3.Error):
            await journal.scrub()
        reader.execute("rollback")
        await journal.put_meta("b", "2")
    await journal.scrub()
    journal.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from hutch.host.journal import Journal
from tests.host.test_journal import ENTRY, record

async def write() -> None:
    journal = Journal(Path(sys.argv[1]))
    journal.open()
    journal.start()
    while True:
        seq = journal.next_seq()
        await journal.put_session(seq, record(f"s{seq}"), ENTRY)
        print(seq, flush=True)

asyncio.run(write())
"""


@pytest.mark.parametrize("acknowledged", [1, 57, 400])
def test_acknowledged_writes_survive_kill_9(tmp_path: Path, acknowledged: int) -> None:
    path = tmp_path / "journal.db"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = 0
    while last < acknowledged:
        last = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    told = max([last, *(int(line) for line in rest.split() if line)])
    journal = Journal(path)
    journal.open()
    found = [seq for seq, _, _ in journal.sessions()]
    assert found[:told] == list(range(1, told + 1))


def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(JournalDamaged, match=r"journal\.db"):
        Journal(path).open()


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "journal.db"
    with sqlite3.connect(path) as connection:
        connection.execute("pragma user_version = 99")
    connection.close()
    with pytest.raises(JournalDamaged, match="version 99"):
        Journal(path).open()


def test_a_journal_of_the_release_before_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    before = command("c1", "s1")
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.execute("create table commands (command_id text primary key, session_id text not null, record blob not null)")
        old.execute("insert into commands values ('c1', 's1', ?)", (msgspec.msgpack.encode(before),))
        old.execute("pragma user_version=4")
        old.commit()
    for _ in range(2):
        journal = Journal(path)
        journal.open()
        assert journal.commands() == [before]


async def test_what_sqlite_does_not_take_ends_no_writer(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.open()
    journal.start()
    try:
        with pytest.raises(OverflowError):
            await asyncio.wait_for(journal.windows(2**64), 20)
        await asyncio.wait_for(journal.put_meta("after", "it"), 20)
        assert journal.meta("after") == "it"
    finally:
        journal.close()
