"""`sandbox config …`: changes of a sandbox's settings, read back and in force."""

from __future__ import annotations

import pytest

from tests.clients.cli.conftest import CommandLine
from tests.clients.cli.test_sandboxes import configuration, rows

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(180)]


# Command, field of `config list`, what it shows.
SETTINGS = (
    ("vcpus box 4", "vCPUs", "4"),
    ("timeout box 20m", "Timeout", "20 minutes"),
    ("persistent box true", "Persistent", "true"),
    ("region box iad1", "Region", "iad1"),
    ("failover-regions box none", "Failover regions", "-"),
    ("network-id box none", "Secure Compute network", "-"),
    ("snapshot-expiration box 14d", "Snapshot expiration", "14 days"),
    ("snapshot-expiration box none", "Snapshot expiration", "none"),
    ("keep-last-snapshots box 4", "Keep last snapshots", "4"),
    ("ports box --publish-port 4000 -p 4001", "Ports", "4000, 4001"),
    ("tags box --tag b=2 --tag a=1", "Tags", "b=2, a=1"),
    ("network-policy box --mode deny-all", "Network policy", "deny-all"),
    ("network-policy box --allowed-domain example.com --denied-cidr 192.0.2.0/24", "Network policy", "restricted"),
)


@pytest.mark.section("6.4")
def test_settings_are_changed_and_shown(cli: CommandLine, box: str) -> None:
    """§6.4: each is a PATCH with one field; `config list` shows the new value."""
    for change, field, shown in SETTINGS:
        cli.good("config", *change.split())
        assert shown in configuration(cli, box)[field], change


@pytest.mark.section("6.4")
def test_what_may_be_taken_away_is(cli: CommandLine, box: str) -> None:
    """§6.4: tags, ports and retention are cleared."""
    cli.good("config", "tags", box, "--tag", "a=1")
    cli.good("config", "ports", box, "-p", "4000")
    cli.good("config", "keep-last-snapshots", box, "2")
    cli.good("config", "tags", box)
    cli.good("config", "ports", box)
    cli.good("config", "keep-last-snapshots", box, "0")
    found = configuration(cli, box)
    assert (found["Tags"], found["Ports"], found["Keep last snapshots"]) == ("-", "-", "-")


@pytest.mark.section("6.4")
def test_retention_in_parts(cli: CommandLine, box: str) -> None:
    """§6.4: how many, for how long, and what becomes of the others are three commands on one value."""
    cli.good("config", "keep-last-snapshots", box, "2")
    cli.good("config", "keep-last-snapshots-for", box, "7d")
    cli.good("config", "delete-evicted-snapshots", box, "false")
    kept = configuration(cli, box)["Keep last snapshots"]
    assert "2" in kept
    assert "7" in kept


@pytest.mark.section("7.4")
@pytest.mark.section("14.2")
def test_a_policy_holds_for_the_running_session(cli: CommandLine, box: str) -> None:
    """§7.4, §14.2: after `deny-all` no name resolves; what runs is not started anew."""
    cli.good("exec", box, "sh", "-c", "echo 1 > /dev/shm/mark || echo 1 > /tmp/mark")
    cli.good("config", "network-policy", box, "--network-policy", "deny-all")
    ran = cli("exec", box, "curl", "-sS", "--max-time", "5", "https://example.com/")
    assert ran.code == 6, ran.err
    assert len(rows(cli.good("sessions", "list", "--all", box))) == 1


@pytest.mark.section("11.2")
@pytest.mark.section("6.4")
def test_the_current_snapshot_is_set_back(cli: CommandLine) -> None:
    """§6.4, §11.2: the next session begins with the snapshot that `config current-snapshot` names."""
    cli.good("create", "--silent", "--name", "back")
    for word in ("first", "second"):
        cli.good("exec", "back", "sh", "-c", f"echo {word} > file")
        cli.good("stop", "back")
    second, first = [row["ID"] for row in rows(cli.good("snapshots", "list", "--name", "back"))]
    assert configuration(cli, "back")["Current snapshot"] == second
    cli.good("config", "current-snapshot", "back", first)
    assert cli.good("exec", "back", "cat", "file") == "first\n"


@pytest.mark.section("12")
def test_mounts_are_replaced_for_the_next_session(cli: CommandLine) -> None:
    """§12: `config mounts` replaces them all; none takes them away."""
    cli.good("drives", "get-or-create", "data", "--max-size", str(64 << 20))
    cli.good("create", "--silent", "--name", "mounts")
    cli.good("stop", "mounts")
    cli.good("config", "mounts", "mounts", "--mount", "data:/data")
    assert "/data" in configuration(cli, "mounts")["Mounts"]
    assert cli.good("exec", "mounts", "sh", "-c", "echo x > /data/file; cat /data/file") == "x\n"
    cli.good("stop", "mounts")
    cli.good("config", "mounts", "mounts")
    assert cli("exec", "mounts", "cat", "/data/file").code == 1
    assert configuration(cli, "mounts")["Mounts"] == "-"


@pytest.mark.section("4.6")
def test_what_can_not_be_meant_is_refused(cli: CommandLine, box: str) -> None:
    """§4.6: 4xx with a sentence, exit code 1, and the settings are as they were."""
    before = configuration(cli, box)
    for change in (
        "vcpus box 3",
        "timeout box 1ms",
        "ports box -p 80",
        "snapshot-expiration box 5m",
        "keep-last-snapshots box 11",
        "current-snapshot box snap_0000000000000000000000000000",
        "network-policy box --allowed-domain api*.example.com",
        "network-policy box --allowed-cidr 300.0.0.0/8",
    ):
        done = cli("config", *change.split())
        assert done.code == 1, (change, done)
        assert done.err.strip(), change
    assert configuration(cli, box) == before
