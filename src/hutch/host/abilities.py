"""What this host's isolation backend does not do, refused before anything is made: 409 `isolation_unsupported`, or
`live_snapshot_unsupported` for what a store may not be able to do either. Pure functions.
"""

from __future__ import annotations

from hutch.errors import ConflictError
from hutch.host.protocol import SnapshotRequest
from hutch.isolation.protocol import Traits

DISKS = frozenset({"qemu", "firecracker"})
"""Backends whose sandboxes keep their files in a disk that the host does not open, and whose snapshots are such disks."""


def check_snapshot(traits: Traits, name: str, request: SnapshotRequest) -> None:
    """Whether such a snapshot of a running session can be made. Raises `ConflictError`."""
    if request.memory and not traits.memory:
        raise _unsupported(f"The memory of sandboxes of this host ({name}) can't be saved. Make a snapshot without `memory`.")
    if request.keep_running and not traits.live_copies:
        raise ConflictError(
            "live_snapshot_unsupported",
            f"This host ({name}) can't make snapshots of running sandboxes. Make one without `keepRunning`.",
        )


def _unsupported(message: str) -> ConflictError:
    return ConflictError("isolation_unsupported", message)
