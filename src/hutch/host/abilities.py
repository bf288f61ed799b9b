"""What this host's isolation backend does not do, refused before anything is made: 409 `isolation_unsupported`, or
`live_snapshot_unsupported` for what a store may not be able to do either. Pure functions.
"""

from __future__ import annotations

from hutch.errors import ConflictError
from hutch.host.protocol import SessionSpec, SnapshotRecord, SnapshotRequest
from hutch.isolation.protocol import Traits

DISKS = frozenset({"qemu", "firecracker"})
"""Backends whose sandboxes keep their files in a disk that the host does not open."""


def check_start(traits: Traits, name: str, spec: SessionSpec, source: SnapshotRecord | None) -> None:
    """Whether a session can begin under the backend `name`, with the files of `source` if any. Raises `ConflictError`."""
    if spec.mounts and not traits.drives:
        raise _unsupported(f"Sandboxes of this host ({name}) can't mount drives. Leave `mounts` out.")
    if source is not None and source.disk is traits.trees:
        made_by = "virtual machines" if source.disk else "a host without virtual machines"
        raise _unsupported(f"Snapshot '{source.snapshot_id}' was made by {made_by}; a sandbox of {name} can't begin with it.")


def check_snapshot(traits: Traits, name: str, request: SnapshotRequest) -> None:
    """Whether such a snapshot of a running session can be made. Raises `ConflictError`."""
    if request.memory and not traits.memory:
        raise _unsupported(f"The memory of sandboxes of this host ({name}) can't be saved. Make a snapshot without `memory`.")
    if request.keep_running and not traits.live_copies:
        raise ConflictError(
            "live_snapshot_unsupported",
            f"This host ({name}) can't make snapshots of running sandboxes. Make one without `keepRunning`.",
        )


def check_import(traits: Traits, name: str) -> None:
    """Whether an archive can be made a snapshot that sandboxes begin with. Raises `ConflictError`."""
    if not traits.trees:
        raise _unsupported(f"This host ({name}) can't make archives the disks of virtual machines.")


def check_files(record: SnapshotRecord) -> None:
    """Whether the host can read the files of a snapshot. Raises `ConflictError`."""
    if record.disk:
        raise _unsupported(
            f"The files of snapshot '{record.snapshot_id}' are in the disk of a virtual machine, which no host opens: it "
            "can be neither exported nor made an image."
        )


def _unsupported(message: str) -> ConflictError:
    return ConflictError("isolation_unsupported", message)
