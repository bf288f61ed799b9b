"""What one Firecracker machine is made of, as values, and the requests to its API that make it, in their order.

Paths are those of the machine's own directory, its jail, and relative to it: a snapshot keeps them, and goes on in the
directory of another machine, with a jailer or without.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

MIB = 1024 * 1024
CHANNEL = "v"
"""The directory in the jail that holds sockets and nothing else."""
VSOCK, API = f"{CHANNEL}/vsock", f"{CHANNEL}/api"
KERNEL, INITRAMFS, DISK = "kernel", "initramfs", "disk"
STATE, MEMORY = "state", "memory"
GUEST_CID = 3
"""The lowest that a guest may have. Every machine has its own sockets, so all may have the same."""
PORT = 5000
"""Of the host, on which the agent finds it: it connects to `<vsock>_5000`."""
MAX_VCPUS = 32
MIN_MEMORY_MIB = 16
MAX_DRIVES = 16
DEFAULT_KERNEL_ARGS = "console=ttyS0 quiet loglevel=3 reboot=k panic=-1 oops=panic i8042.noaux i8042.nomux i8042.dumbkbd"
"""A restart, and so a panic, is what ends Firecracker (`reboot=k`, by the keyboard's controller). No mouse is looked for."""
MAX_KERNEL_LINE = 2048
"""Of x86-64."""


class SnapshotKind(StrEnum):
    FULL = "Full"
    DIFF = "Diff"


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the API. `body` None: a question."""

    method: str
    path: str
    body: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """A bound on a rate: `size` tokens (bytes or operations) come back in `refill_ms` milliseconds; `burst` more come once."""

    size: int
    refill_ms: int
    burst: int = 0

    def __post_init__(self) -> None:
        if self.size < 1 or self.refill_ms < 1 or self.burst < 0:
            raise ValueError(f"A rate needs at least one token and one millisecond, not {self}.")

    def body(self) -> dict[str, Any]:
        return {"size": self.size, "refill_time": self.refill_ms} | ({"one_time_burst": self.burst} if self.burst else {})


@dataclass(frozen=True, slots=True)
class RateLimiter:
    """Bounds on bytes and on operations; None: no bound."""

    bandwidth: TokenBucket | None = None
    operations: TokenBucket | None = None

    def body(self) -> dict[str, Any]:
        bounds = {"bandwidth": self.bandwidth, "ops": self.operations}
        return {name: bucket.body() for name, bucket in bounds.items() if bucket is not None}


@dataclass(frozen=True, slots=True)
class Drive:
    """A file as a disk of the guest. `root`: the kernel mounts it, and starts the agent from it."""

    name: str
    path: str
    read_only: bool
    root: bool = False
    limiter: RateLimiter | None = None

    def request(self) -> Request:
        body: dict[str, Any] = {
            "drive_id": self.name,
            "path_on_host": self.path,
            "is_root_device": self.root,
            "is_read_only": self.read_only,
        }
        if not self.read_only:
            # What the guest was told is written is in the host's file; Firecracker's default forgets that on request.
            body["cache_type"] = "Writeback"
        if self.limiter is not None:
            body["rate_limiter"] = self.limiter.body()
        return Request("PUT", f"/drives/{self.name}", body)


@dataclass(frozen=True, slots=True)
class Interface:
    """A tap device of the host as a network card of the guest."""

    name: str
    host_device: str
    guest_mac: str | None = None
    received: RateLimiter | None = None
    sent: RateLimiter | None = None

    def request(self) -> Request:
        body: dict[str, Any] = {"iface_id": self.name, "host_dev_name": self.host_device}
        if self.guest_mac is not None:
            body["guest_mac"] = self.guest_mac
        if self.received is not None:
            body["rx_rate_limiter"] = self.received.body()
        if self.sent is not None:
            body["tx_rate_limiter"] = self.sent.body()
        return Request("PUT", f"/network-interfaces/{self.name}", body)


@dataclass(frozen=True, slots=True)
class VirtualMachine:
    """A machine that boots. Its drives are attached in their order, a root before all others. `gives_back`: what its guest frees
    goes back to the host, which releases since `SINCE_FREE_PAGES` can do."""

    vcpus: int
    memory_bytes: int
    kernel_line: str
    initramfs: bool
    drives: tuple[Drive, ...] = ()
    interfaces: tuple[Interface, ...] = field(default=())
    track_dirty_pages: bool = False
    gives_back: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.vcpus <= MAX_VCPUS:
            raise ValueError(f"A Firecracker machine has 1 to {MAX_VCPUS} processors, not {self.vcpus}.")
        if self.memory_bytes < MIN_MEMORY_MIB * MIB or self.memory_bytes % MIB:
            raise ValueError(
                f"A Firecracker machine's memory is whole MiB, at least {MIN_MEMORY_MIB}, not {self.memory_bytes} bytes."
            )
        if len(self.drives) > MAX_DRIVES:
            raise ValueError(f"A Firecracker machine has at most {MAX_DRIVES} disks, not {len(self.drives)}.")
        if not self.initramfs and not any(drive.root for drive in self.drives):
            raise ValueError("A Firecracker machine starts from an initramfs or from a root disk; it has neither.")
        if any(drive.root for drive in self.drives[1:]):
            raise ValueError("The root disk is the first one.")
        if len(self.kernel_line) > MAX_KERNEL_LINE:
            raise ValueError(f"The kernel's command line has {len(self.kernel_line)} characters; {MAX_KERNEL_LINE} are possible.")

    def requests(self) -> tuple[Request, ...]:
        """The calls that make it, up to the one that starts it. Its metadata service stays off: nobody sets it up."""
        machine: dict[str, Any] = {"vcpu_count": self.vcpus, "mem_size_mib": self.memory_bytes // MIB, "smt": False}
        if self.track_dirty_pages:
            machine["track_dirty_pages"] = True
        source: dict[str, Any] = {"kernel_image_path": KERNEL, "boot_args": self.kernel_line}
        if self.initramfs:
            source["initrd_path"] = INITRAMFS
        # It holds nothing, and is what the guest reports pages by that it has freed.
        balloon = Request("PUT", "/balloon", {"amount_mib": 0, "deflate_on_oom": True, "free_page_reporting": True})
        return (
            Request("PUT", "/machine-config", machine),
            Request("PUT", "/boot-source", source),
            *(drive.request() for drive in self.drives),
            *(interface.request() for interface in self.interfaces),
            Request("PUT", "/vsock", {"guest_cid": GUEST_CID, "uds_path": VSOCK}),
            Request("PUT", "/entropy", {}),
            *([balloon] if self.gives_back else []),
            Request("PUT", "/actions", {"action_type": "InstanceStart"}),
        )


def kernel_line(arguments: str | None, layers: int, *, init: str | None = None, address: str = "", gateway: str = "") -> str:
    """The kernel's command line: the operator's words or the default ones, then what the agent has to know.

    `layers` images and a disk are put on top of each other; with 0 the agent stays in the root that it was started from.
    `init` is the agent's path in a root disk, unless the words name one already. `address`, with the length of its prefix, and
    `gateway` are the network card's.
    """
    words = (DEFAULT_KERNEL_ARGS if arguments is None else arguments).split()
    own = ["hutch.vm=1", f"hutch.layers={layers}", "hutch.disks=order", f"hutch.vsock={PORT}"]
    if address:
        own += [f"hutch.address={address}", f"hutch.gateway={gateway}"]
    if init is not None and not any(word.startswith(("init=", "rdinit=")) for word in words):
        own.insert(0, f"init={init}")
    # What stands behind `--` is for init alone.
    split = words.index("--") if "--" in words else len(words)
    return " ".join([*words[:split], *own, *words[split:]])


def pause() -> Request:
    return Request("PATCH", "/vm", {"state": "Paused"})


def resume() -> Request:
    return Request("PATCH", "/vm", {"state": "Resumed"})


def create_snapshot(kind: SnapshotKind, state: str = STATE, memory: str = MEMORY) -> Request:
    """Of a machine that is paused: `state` has its devices, `memory` its memory (of a diff: what changed, as a sparse file)."""
    return Request("PUT", "/snapshot/create", {"snapshot_type": kind.value, "snapshot_path": state, "mem_file_path": memory})


@dataclass(frozen=True, slots=True)
class Loading:
    """How a snapshot is loaded. `networks` maps interfaces to other tap devices, `vsock` is another path than the snapshot's."""

    track_dirty_pages: bool = False
    networks: tuple[tuple[str, str], ...] = ()
    vsock: str | None = None

    def request(self, version: Version) -> Request:
        """The call that loads it, and lets it go on. Raises `ValueError` for what this version can't do."""
        body: dict[str, Any] = {
            "snapshot_path": STATE,
            "mem_backend": {"backend_type": "File", "backend_path": MEMORY},
            "resume_vm": True,
        }
        if self.track_dirty_pages:
            body["track_dirty_pages" if version >= SINCE_TRACK_DIRTY_PAGES else "enable_diff_snapshots"] = True
        if self.networks:
            if version < SINCE_NETWORK_OVERRIDES:
                raise ValueError(_too_old(version, SINCE_NETWORK_OVERRIDES, "give a snapshot's network card another tap device"))
            body["network_overrides"] = [{"iface_id": name, "host_dev_name": device} for name, device in self.networks]
        if self.vsock is not None:
            if version < SINCE_VSOCK_OVERRIDE:
                raise ValueError(_too_old(version, SINCE_VSOCK_OVERRIDE, "give a snapshot's vsock another path"))
            body["vsock_override"] = {"uds_path": self.vsock}
        return Request("PUT", "/snapshot/load", body)


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A release of Firecracker. What precedes one (`1.17.0-dev`) has its numbers, and counts as it."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


OLDEST = Version(1, 8, 0)
"""Describes its devices by ACPI, reseeds the guest's random numbers after a restore (VMGenID), and its first diff snapshot after
a full one has only what changed."""
SINCE_NETWORK_OVERRIDES = Version(1, 12, 0)
SINCE_TRACK_DIRTY_PAGES = Version(1, 13, 0)
"""Called `enable_diff_snapshots` before."""
SINCE_FREE_PAGES = Version(1, 14, 0)
SINCE_VSOCK_OVERRIDE = Version(1, 16, 0)


def _too_old(have: Version, needed: Version, what: str) -> str:
    return f"Firecracker {have} can't {what}; {needed} can."
