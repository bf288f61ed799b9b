"""`sandbox snapshot`, `snapshots …` and `drives …`."""

from __future__ import annotations

import re

import pytest

from tests.clients.cli.conftest import CommandLine
from tests.clients.cli.test_sandboxes import rows

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(180)]


@pytest.mark.section("7.5")
@pytest.mark.section("11.1")
def test_a_snapshot_wants_a_yes_and_ends_the_session(cli: CommandLine) -> None:
    """§7.5, §11.1: without `--stop` nothing happens; with it a snapshot is made, and sandboxes begin with it."""
    cli.good("create", "--silent", "--non-persistent", "--name", "shot")
    cli.good("exec", "shot", "sh", "-c", "echo captured > file")
    assert cli("snapshot", "shot").code == 1
    made = cli("snapshot", "--stop", "--expiration", "2d", "shot")
    assert made.code == 0, made.err
    found = re.search(r"snap_[0-9A-Za-z]{28}", made.out + made.err)
    assert found is not None
    cli.good("create", "--silent", "--non-persistent", "--snapshot", found[0], "--name", "from-it")
    assert cli.good("exec", "from-it", "cat", "file") == "captured\n"
    listed = rows(cli.good("snapshots", "list"))
    assert (listed[0]["ID"], listed[0]["STATUS"]) == (found[0], "created")
    assert "2 days" in listed[0]["EXPIRATION"] or "day" in listed[0]["EXPIRATION"]


@pytest.mark.section("11.3")
@pytest.mark.section("11.4")
def test_snapshots_are_shown_and_deleted(cli: CommandLine) -> None:
    """§11.3, §11.4: `get` shows one, `delete` takes several; they stay listed as deleted, and nothing begins with them."""
    cli.good("create", "--silent", "--name", "old")
    cli.good("stop", "old")
    (one,) = [row["ID"] for row in rows(cli.good("snapshots", "list", "--name", "old"))]
    assert one in cli.good("snapshots", "get", one)
    cli.good("snapshots", "rm", one)
    assert [row["STATUS"] for row in rows(cli.good("snapshots", "list", "--name", "old"))] == ["deleted"]
    gone = cli("exec", "old", "true")
    assert gone.code == 1
    assert "410" in gone.err


@pytest.mark.section("11.5")
def test_the_tree_shows_where_a_sandbox_comes_from(cli: CommandLine) -> None:
    """§11.5: ancestors of the current snapshot, newest first."""
    cli.good("create", "--silent", "--name", "tree")
    for _ in range(3):
        cli.good("exec", "tree", "true")
        cli.good("stop", "tree")
    ids = [row["ID"] for row in rows(cli.good("snapshots", "list", "--name", "tree"))]
    assert len(ids) == 3
    shown = cli.good("snapshots", "tree", "tree")
    assert re.findall(r"^● (snap_[0-9A-Za-z]{28})", shown, re.MULTILINE) == ids
    assert "current" in shown


@pytest.mark.section("11.2")
def test_snapshots_are_paged(cli: CommandLine) -> None:
    """§11.2: `limit`, and the cursor that the page before names."""
    cli.good("create", "--silent", "--name", "paged")
    for _ in range(3):
        cli.good("exec", "paged", "true")
        cli.good("stop", "paged")
    ids = [row["ID"] for row in rows(cli.good("snapshots", "list", "--name", "paged"))]
    first = cli("snapshots", "list", "--name", "paged", "--limit", "2")
    assert re.findall(r"^snap_\w{28}", first.out, re.MULTILINE) == ids[:2]
    cursor = re.search(r"--cursor[= ](\S+)", first.out + first.err)
    assert cursor is not None, first
    rest = cli.good("snapshots", "list", "--name", "paged", "--limit", "2", "--cursor", cursor[1].strip("'\"`"))
    assert re.findall(r"^snap_\w{28}", rest, re.MULTILINE) == ids[2:]


@pytest.mark.section("4.5")
@pytest.mark.parametrize(
    "arguments",
    [
        ["snapshots", "get", "snap_0000000000000000000000000000"],
        ["snapshots", "delete", "snap_0000000000000000000000000000"],
        ["snapshots", "get", "not-a-snapshot"],
        ["create", "--snapshot", "snap_0000000000000000000000000000"],
        ["snapshot", "--stop", "no-such-sandbox"],
        ["snapshots", "tree", "no-such-sandbox"],
        ["sessions", "list", "--all", "../../etc"],
        ["drives", "delete", "no-such-drive"],
    ],
    ids=lambda arguments: "-".join(arguments[:3]),
)
def test_unknown_ones_are_named_in_the_error(cli: CommandLine, arguments: list[str]) -> None:
    """§4.5: exit code 1, and something that says why."""
    done = cli(*arguments)
    assert done.code == 1, (done.out, done.err)
    assert done.err.strip()


@pytest.mark.section("12")
def test_a_drive_outlives_its_sandboxes(cli: CommandLine) -> None:
    """§12: made once, mounted by one after the other, listed, not deleted while attached, and as read-only copy for others."""
    assert cli("drives", "get-or-create", "shared", "--max-size", str(64 << 20)).code == 0
    assert cli("drives", "get-or-create", "shared").code == 0
    cli.good("create", "--silent", "--non-persistent", "--name", "writer", "--mount", "shared:/data")
    cli.good("exec", "writer", "sh", "-c", "echo written > /data/file")
    assert [(row["NAME"], row["ATTACHED SANDBOX"]) for row in rows(cli.good("drives", "list"))] == [("shared", "writer")]
    assert cli("drives", "delete", "shared").code == 1
    assert cli("create", "--silent", "--name", "second", "--mount", "shared:/data").code == 1
    cli.good("create", "--silent", "--non-persistent", "--name", "reader", "--mount", "shared:/data:snapshot")
    assert cli.good("exec", "reader", "sh", "-c", "cat /data/file; ! echo x 2>/dev/null > /data/file") == "written\n"
    cli.good("rm", "writer", "reader")
    cli.good("create", "--silent", "--non-persistent", "--name", "later", "--mount", "shared:/data:read-write")
    assert cli.good("exec", "later", "cat", "/data/file") == "written\n"
    cli.good("rm", "later")
    cli.good("drives", "rm", "shared")
    assert rows(cli.good("drives", "list")) == []


@pytest.mark.section("12")
def test_a_drive_of_another_size_is_a_conflict(cli: CommandLine) -> None:
    """§12: 409 when the drive is there with another size."""
    cli.good("drives", "get-or-create", "sized", "--max-size", str(64 << 20))
    done = cli("drives", "get-or-create", "sized", "--max-size", str(128 << 20))
    assert done.code == 1
    assert "409" in done.err
