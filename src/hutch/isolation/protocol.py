"""What the host asks of an isolation backend.

A *machine* is one guest with its kernel boundary. The backend boots it from a `MachinePlan` and from then on the host knows
it by the `Process` whose death is the machine's death. The agent inside connects to the channel by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hutch.host.cgroups import Cgroups
from hutch.host.kernel import Process


@dataclass(frozen=True, slots=True)
class PlannedMount:
    """A directory of the host at a path of the guest, which has it alone: nobody else changes what is in it."""

    path: str
    source: Path
    read_only: bool


@dataclass(frozen=True, slots=True)
class MachinePlan:
    """Everything a machine is made of.

    `lowers` are read-only EROFS images, the lowest first; `layer` is the writable layer's directory; `channel_dir` holds the
    socket `host.sock` on which the host listens; `directory` is the machine's own, for files and logs of the backend. With
    `memory`, a directory that `checkpoint` wrote, it goes on where that machine was, over the files of the same moment.
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


class BootFailed(OSError):
    """A machine did not start; the text says what the backend printed."""


class Isolation(Protocol):
    """A backend. All methods block; all but `boot` and `probe` are idempotent."""

    name: str
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

    def checkpoint(self, machine_id: str, image: Path) -> None:
        """Write what a suspended machine has in memory into the empty directory `image`. Its channel breaks. Raises `OSError`."""

    def fingerprint(self) -> str:
        """Names what a machine needs in order to go on from a `checkpoint`: this kernel for guests on this model of processor."""

    def remove(self, machine_id: str, directory: Path, process: Process | None) -> None:
        """Kill a machine and remove everything that `boot` made. The cgroup's counters are gone afterwards."""

    def kill(self, process: Process) -> None:
        """End a machine at once and wait until it is gone."""

    def machines(self) -> set[str]:
        """Ids of all machines that the backend still knows anything about."""

    def forget_image(self, image: Path) -> None:
        """Let go of an image that no machine uses any more."""

    def close(self) -> None:
        """Undo what the backend shares between machines; none may be left."""
