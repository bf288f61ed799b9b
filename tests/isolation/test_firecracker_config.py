"""The requests that make a Firecracker machine, as values."""

from __future__ import annotations

from typing import Any

import pytest

from hutch.isolation.firecracker_config import (
    DEFAULT_KERNEL_ARGS,
    MIB,
    Drive,
    Interface,
    Loading,
    RateLimiter,
    SnapshotKind,
    TokenBucket,
    Version,
    VirtualMachine,
    create_snapshot,
    kernel_line,
)
from tests.isolation.fake_firecracker import FIELDS

LIMITER = RateLimiter(bandwidth=TokenBucket(1000, 100, 50), operations=TokenBucket(10, 1000))
ROOT = Drive("root", "root", read_only=True, root=True)


def machine(**changed: Any) -> VirtualMachine:
    values: dict[str, Any] = {"vcpus": 1, "memory_bytes": 128 * MIB, "kernel_line": "x", "initramfs": False, "drives": (ROOT,)}
    return VirtualMachine(**values | changed)


def test_what_a_guest_frees_is_given_back_where_that_is_wanted() -> None:
    assert "/balloon" not in [request.path for request in machine().requests()]
    [balloon] = [request for request in machine(gives_back=True).requests() if request.path == "/balloon"]
    # It takes nothing from the guest.
    assert balloon.body == {"amount_mib": 0, "deflate_on_oom": True, "free_page_reporting": True}
    assert set(balloon.body) <= FIELDS["/balloon"]


def test_a_machine_is_made_in_this_order() -> None:
    disk = Drive("disk", "disk", read_only=False, limiter=LIMITER)
    card = Interface("eth0", "tap0", "06:00:00:00:00:01", received=LIMITER, sent=RateLimiter())
    made = machine(vcpus=2, initramfs=True, drives=(ROOT, disk), interfaces=(card,), track_dirty_pages=True)
    limited = {"bandwidth": {"size": 1000, "refill_time": 100, "one_time_burst": 50}, "ops": {"size": 10, "refill_time": 1000}}
    assert [(str(request), request.body) for request in made.requests()] == [
        ("PUT /machine-config", {"vcpu_count": 2, "mem_size_mib": 128, "smt": False, "track_dirty_pages": True}),
        ("PUT /boot-source", {"kernel_image_path": "kernel", "boot_args": "x", "initrd_path": "initramfs"}),
        ("PUT /drives/root", {"drive_id": "root", "path_on_host": "root", "is_root_device": True, "is_read_only": True}),
        (
            "PUT /drives/disk",
            {
                "drive_id": "disk",
                "path_on_host": "disk",
                "is_root_device": False,
                "is_read_only": False,
                "cache_type": "Writeback",
                "rate_limiter": limited,
            },
        ),
        (
            "PUT /network-interfaces/eth0",
            {
                "iface_id": "eth0",
                "host_dev_name": "tap0",
                "guest_mac": "06:00:00:00:00:01",
                "rx_rate_limiter": limited,
                "tx_rate_limiter": {},
            },
        ),
        ("PUT /vsock", {"guest_cid": 3, "uds_path": "v/vsock"}),
        ("PUT /entropy", {}),
        ("PUT /actions", {"action_type": "InstanceStart"}),
    ]


def test_no_request_has_a_field_that_firecracker_does_not_know() -> None:
    disk = Drive("disk", "disk", read_only=False, limiter=LIMITER)
    made = machine(drives=(ROOT, disk), interfaces=(Interface("eth0", "tap0", "x", LIMITER, LIMITER),), initramfs=True)
    loading = Loading(True, (("eth0", "tap1"),), "v/other").request(Version(1, 17, 0))
    for request in (*made.requests(), create_snapshot(SnapshotKind.DIFF), loading):
        known = next(fields for name, fields in FIELDS.items() if request.path.startswith(name))
        assert set(request.body or {}) <= known


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"vcpus": 0}, "1 to 32 processors"),
        ({"vcpus": 33}, "1 to 32 processors"),
        ({"memory_bytes": 15 * MIB}, "at least 16"),
        ({"memory_bytes": 128 * MIB + 1}, "whole MiB"),
        ({"drives": ()}, "has neither"),
        ({"drives": (Drive("a", "a", read_only=True), ROOT)}, "The root disk is the first"),
        ({"drives": (ROOT, *(Drive(str(n), "x", read_only=True) for n in range(16)))}, "at most 16 disks"),
        ({"kernel_line": "x" * 2049}, "2049 characters"),
    ],
)
def test_what_can_not_be_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        machine(**changed)


@pytest.mark.parametrize("bucket", [(0, 1), (1, 0), (1, 1, -1)])
def test_a_rate_of_nothing_is_refused(bucket: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="A rate needs"):
        TokenBucket(*bucket)


@pytest.mark.parametrize(
    ("arguments", "layers", "init", "line"),
    [
        (None, 0, None, f"{DEFAULT_KERNEL_ARGS} hutch.vm=1 hutch.layers=0 hutch.disks=order hutch.vsock=5000"),
        ("console=ttyS0", 2, None, "console=ttyS0 hutch.vm=1 hutch.layers=2 hutch.disks=order hutch.vsock=5000"),
        ("a  b", 0, "/init", "a b init=/init hutch.vm=1 hutch.layers=0 hutch.disks=order hutch.vsock=5000"),
        ("init=/x", 0, "/init", "init=/x hutch.vm=1 hutch.layers=0 hutch.disks=order hutch.vsock=5000"),
        ("a -- b", 0, None, "a hutch.vm=1 hutch.layers=0 hutch.disks=order hutch.vsock=5000 -- b"),
        ("", 0, None, "hutch.vm=1 hutch.layers=0 hutch.disks=order hutch.vsock=5000"),
    ],
)
def test_the_command_line_has_what_the_agent_asks_for(arguments: str | None, layers: int, init: str | None, line: str) -> None:
    assert kernel_line(arguments, layers, init=init) == line


def test_a_snapshot_is_loaded_as_its_version_calls_it() -> None:
    plain = {"snapshot_path": "state", "mem_backend": {"backend_type": "File", "backend_path": "memory"}, "resume_vm": True}
    assert Loading().request(Version(1, 8, 0)).body == plain
    tracked = Loading(track_dirty_pages=True)
    assert tracked.request(Version(1, 12, 9)).body == plain | {"enable_diff_snapshots": True}
    assert tracked.request(Version(1, 13, 0)).body == plain | {"track_dirty_pages": True}
    networks = Loading(networks=(("eth0", "tap1"),))
    overrides = [{"iface_id": "eth0", "host_dev_name": "tap1"}]
    assert networks.request(Version(1, 12, 0)).body == plain | {"network_overrides": overrides}
    vsock = Loading(vsock="v/other")
    assert vsock.request(Version(1, 16, 0)).body == plain | {"vsock_override": {"uds_path": "v/other"}}


def test_what_an_older_version_lacks_is_said() -> None:
    with pytest.raises(ValueError, match=r"Firecracker 1\.11\.0 can't give .* another tap device; 1\.12\.0 can"):
        Loading(networks=(("eth0", "tap1"),)).request(Version(1, 11, 0))
    with pytest.raises(ValueError, match=r"Firecracker 1\.15\.1 can't give a snapshot's vsock another path; 1\.16\.0 can"):
        Loading(vsock="x").request(Version(1, 15, 1))
