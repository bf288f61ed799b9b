"""What a gVisor sandbox is made of, as a value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hutch.isolation import bundle
from hutch.isolation.protocol import MachinePlan, PlannedMount


def config(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "machine_id": "m" + "0" * 20,
        "directory": Path("/d"),
        "lowers": (Path("/base.erofs"),),
        "layer": Path("/layer"),
        "channel_dir": Path("/d/channel"),
        "agent": Path("/bin/agent"),
        "namespace": Path("/run/netns/n"),
        "nameserver": "100.64.0.1",
        "cgroup": "/hutch/t/m0",
        "vcpus": 2,
        "memory_bytes": 4 << 30,
    }
    files = {bundle.RESOLVER: Path("/d/resolv.conf"), bundle.HOSTS: Path("/d/hosts"), bundle.BOOT_ID: Path("/d/boot_id")}
    made = bundle.config(MachinePlan(**(values | changes)), Path("/d/root"), files)
    assert json.loads(json.dumps(made)) == made
    return made


def test_limits_follow_the_plan() -> None:
    resources = config(vcpus=3, memory_bytes=6 << 30)["linux"]["resources"]
    assert resources["cpu"]["quota"] == 3 * resources["cpu"]["period"]
    assert resources["memory"]["limit"] == 6 << 30
    assert resources["pids"]["limit"] >= 4096


def test_every_namespace_is_its_own_and_the_network_is_the_given_one() -> None:
    namespaces = {entry["type"]: entry.get("path") for entry in config()["linux"]["namespaces"]}
    assert namespaces == {"pid": None, "ipc": None, "uts": None, "mount": None, "network": "/run/netns/n"}


def test_only_the_channel_the_agent_and_three_files_of_the_host_are_shown() -> None:
    shown = {entry["source"]: entry["options"] for entry in config()["mounts"] if entry["type"] == "bind"}
    assert set(shown) == {"/d/channel", "/bin/agent", "/d/resolv.conf", "/d/hosts", "/d/boot_id"}
    assert all("ro" in options for source, options in shown.items() if source != "/d/hosts")


def test_drives_come_last_and_bring_no_rights() -> None:
    mounts = (PlannedMount("/data", Path("/drives/a"), read_only=False), PlannedMount("/seen", Path("/views/b"), read_only=True))
    *_, data, seen = config(mounts=mounts)["mounts"]
    assert data == {
        "destination": "/data",
        "type": "bind",
        "source": "/drives/a",
        "options": ["bind", "rw", "nosuid", "nodev"],
    }
    assert (seen["source"], seen["options"]) == ("/views/b", ["bind", "ro", "nosuid", "nodev"])


@pytest.mark.parametrize("memory_mb", [64, 512, 2048, 65536])
def test_file_systems_in_memory_are_bounded_far_below_the_limit(memory_mb: int) -> None:
    for mount in config(memory_bytes=memory_mb << 20)["mounts"]:
        if mount["type"] == "tmpfs":
            (size,) = (int(option[5:-1]) for option in mount["options"] if option.startswith("size="))
            assert size <= max(16, memory_mb // 4)
    assert "/tmp" not in {mount["destination"] for mount in config()["mounts"]}
