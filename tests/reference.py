"""What objects of answers look like, said a second time: from the reference of the vendor's API, not from
`hutch.control.answers`."""

from __future__ import annotations

from typing import Any

REQUIRED = {
    "sandbox": "name currentSessionId status statusUpdatedAt persistent createdAt updatedAt",
    "session": "id status memory vcpus region timeout cwd requestedAt createdAt updatedAt runtime interactivePort "
    "sourceSandboxName projectId",
    "route": "url subdomain port",
    "command": "id name args cwd sessionId exitCode startedAt",
    "snapshot": "id sourceSessionId region status sizeBytes createdAt updatedAt lastUsedAt",
    "drive": "id name projectId region maxSizeBytes createdAt updatedAt",
    "pagination": "count next",
}
"""What the vendor's clients, or its reference, require of each object; `interactivePort` is what the CLI does."""
OPTIONAL = {
    "sandbox": "currentSnapshotId region failoverRegions vcpus memory runtime image timeout networkPolicy networkId "
    "totalEgressBytes totalIngressBytes totalActiveCpuDurationMs totalDurationMs expiresAt cwd tags mounts snapshotExpiration "
    "keepLastSnapshots architecture",
    "session": "startedAt requestedStopAt stoppedAt abortedAt snapshottedAt duration sourceSnapshotId networkPolicy "
    "activeCpuDurationMs networkTransfer architecture",
    "route": "system",
    "command": "durationMs",
    "snapshot": "regions expiresAt creationMethod parentId architecture",
    "drive": "currentSessionId currentSandboxName parentDriveId rootDriveId",
    "pagination": "",
}
OWN = {
    "sandbox": "cgroup isolation portsPrivate wakeOnRequest budget",
    "session": "stopReason",
    "snapshot": "sourceSandboxName durableAt memoryBytes storedAt storeError",
    "drive": "usedBytes",
}
NULLABLE = {("command", "exitCode"), ("pagination", "next")}
INTEGERS = (
    "statusUpdatedAt createdAt updatedAt vcpus memory timeout totalEgressBytes totalIngressBytes totalActiveCpuDurationMs "
    "totalDurationMs expiresAt snapshotExpiration requestedAt startedAt requestedStopAt stoppedAt abortedAt snapshottedAt "
    "duration interactivePort activeCpuDurationMs port sizeBytes lastUsedAt maxSizeBytes durationMs"
).split()
SESSION_STATES = {"pending", "running", "stopping", "stopped", "failed", "aborted", "snapshotting"}


def compare(kind: str, found: dict[str, Any]) -> None:
    """Fails for an object that is not one of the reference."""
    missing = set(REQUIRED[kind].split()) - found.keys()
    assert not missing, f"{kind} lacks {sorted(missing)}"
    known = {*REQUIRED[kind].split(), *OPTIONAL[kind].split(), *OWN.get(kind, "").split()}
    assert found.keys() <= known, f"{kind} has {sorted(found.keys() - known)}"
    for name, value in found.items():
        assert value is not None or (kind, name) in NULLABLE, f"{kind}.{name} is null"
        if name in INTEGERS:
            assert type(value) is int, f"{kind}.{name} is {value!r}"
        if name.endswith("At"):
            # Milliseconds, not seconds: after 2001, before 5138.
            assert 10**12 <= value < 10**14, f"{kind}.{name} is {value!r}"


def compare_all(answer: Any) -> int:
    """Compares every object of an answer that has a name of the table; how many."""
    count = 0
    if isinstance(answer, list):
        return sum(compare_all(item) for item in answer)
    if not isinstance(answer, dict):
        return 0
    for name, value in answer.items():
        kind = {"sandboxes": "sandbox", "anchor": ""}.get(name, name.removesuffix("s"))
        for one in value if isinstance(value, list) else [value]:
            if kind in REQUIRED and isinstance(one, dict) and "siblings" not in one:
                compare(kind, one)
                count += 1
            count += compare_all(one)
    return count
