"""What the host asks of an isolation backend.

A *machine* is one guest with its kernel boundary. The backend boots it from a `MachinePlan` and from then on the host knows
it by the `Process` whose death is the machine's death. The agent inside connects to the channel by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hutch.host.cgroups import Cgroups
from hutch.host.kernel import Process
from hutch.wire import Connection

LINK_PREFIX = 30
"""A sandbox's link has two ends (`hutch.host.network`)."""


@dataclass(frozen=True, slots=True)
class PlannedMount:
    """A drive at a path of the guest, which has it alone: nobody else changes what is in it. `source` is a directory of the host,
    or, where the backend has no `trees`, the file of a disk that the guest's agent mounts. `owner` is the user and group that
    a new disk's directory is to belong to."""

    path: str
    source: Path
    read_only: bool
    owner: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class MachinePlan:
    """Everything a machine is made of.

    `lowers` are read-only EROFS images, the lowest first; `layer` is the writable layer's directory; `channel_dir` holds the
    socket `host.sock` on which the host listens; `directory` is the machine's own, for files and logs of the backend. With
    `memory`, a directory that `checkpoint` wrote, it goes on where that machine was, over the files of the same moment.
    `address` is the guest's own in `namespace`, the host's end of whose link is `nameserver`; without one there is no network.
    `disk_bytes` is what may be written to `layer`, where the backend has to say that beforehand; 0: as it likes.
    `prepare` is asked of an agent that many machines begin as, once its files are there: what is the same in all of them.
    """

    machine_id: str
    directory: Path
    lowers: tuple[Path, ...]
    layer: Path
    channel_dir: Path
    agent: Path
    namespace: Path
    nameserver: str
    cgroup: str
    vcpus: int
    memory_bytes: int
    memory: Path | None = None
    mounts: tuple[PlannedMount, ...] = ()
    address: str = ""
    disk_bytes: int = 0
    prepare: Callable[[Connection], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Traits:
    """What a backend does its own way, and what it does not do.

    `listens`: its agent is reached by connecting to a socket; other agents connect themselves, to a socket with `channel_mode`,
    which a machine's monitor may have to open as a user of its own. An agent that has not spoken after
    `boot_timeout_s`, or `adopt_timeout_s` with another host process, is missing; one that returns no ping within `ping_timeout_s`
    is dead. `guest_cgroup` is the cgroup below the machine's that has the guest's own CPU time; empty: it is all the guest's.
    `writes_late`: what was written is with the host only once the agent was told to. `begins`: its agent has to be told what the
    machine is (`machine.begin`), since its memory may be that of another one. `memory`, `live_copies`: whether memory is
    saved, files are copied while it runs. `trees`: whether the host sees files in a layer and in drives, and not disks.
    `whole_memory`: what is saved takes as much room as the machine has memory, for a moment at least, whatever it holds.
    """

    listens: bool = False
    channel_mode: int = 0o600
    boot_timeout_s: float = 30.0
    adopt_timeout_s: float = 8.0
    ping_timeout_s: float = 4.0
    guest_cgroup: str = ""
    writes_late: bool = False
    begins: bool = False
    memory: bool = True
    live_copies: bool = True
    trees: bool = True
    whole_memory: bool = False


class BootFailed(OSError):
    """A machine did not start; the text says what the backend printed."""


class Isolation(Protocol):
    """A backend. All methods block; all but `boot` and `probe` are idempotent."""

    name: str
    traits: Traits
    cgroups: Cgroups

    def probe(self) -> None:
        """Really start something under this backend. Raises `OSError` with the reason why it can't be used."""

    def boot(self, plan: MachinePlan) -> Process:
        """Start a machine. Raises `BootFailed`, and `BadRequestError` where the guest's files have no place for a mount; what was
        made until then is removed by `remove`."""

    def suspend(self, machine_id: str) -> None:
        """Have a machine stand still. Raises `OSError`."""

    def resume(self, machine_id: str) -> None:
        """Have a machine that may stand still go on. Raises `OSError`."""

    def before_checkpoint(self, machine_id: str, image: Path) -> None:
        """Write into the empty directory `image` what can be written of a machine's memory while it still runs, for a
        `checkpoint` that follows. Raises `OSError`."""

    def checkpoint(self, machine_id: str, image: Path) -> None:
        """Write what a suspended machine has in memory into the directory `image`. Its channel breaks. Raises `OSError`."""

    def fingerprint(self) -> str:
        """Names what a machine needs in order to go on from a `checkpoint`: this kernel for guests on this model of processor."""

    def remove(self, machine_id: str, directory: Path, process: Process | None) -> None:
        """Kill a machine and remove everything that `boot` made. The cgroup's counters are gone afterwards."""

    def last_words(self, directory: Path) -> str:
        """Why the machine of a directory died, if it said so: a clause, or nothing. It may be the guest who speaks."""

    def kill(self, process: Process) -> None:
        """End a machine at once and wait until it is gone."""

    def machines(self) -> set[str]:
        """Ids of all machines that the backend still knows anything about."""

    def forget_image(self, image: Path) -> None:
        """Let go of an image that no machine uses any more."""

    def leave(self) -> None:
        """Let go of what only this process needs; machines run on."""

    def close(self) -> None:
        """Undo what the backend shares between machines; none may be left."""
