"""The OCI bundle of a gVisor sandbox, as a value: a pure function of the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hutch.isolation.protocol import MachinePlan, PlannedMount

CPU_PERIOD_US = 100_000
RESOLVER, HOSTS, BOOT_ID = "/etc/resolv.conf", "/etc/hosts", "/proc/sys/kernel/random/boot_id"
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the guest's, not ours
# A backstop against fork bombs. It counts threads of the sentry and stubs too: tight limits crash the sentry.
MAX_PIDS = 8192
# What guest root may do inside its own kernel; none of it applies to the host.
CAPABILITIES = [
    f"CAP_{name}"
    for name in [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "NET_ADMIN",
        "SYS_CHROOT",
        "SYS_ADMIN",
        "SYS_PTRACE",
        "MKNOD",
        "AUDIT_WRITE",
        "SETFCAP",
        "SYS_RESOURCE",
        "SYS_NICE",
        "SYS_BOOT",
        "SYS_TIME",
        "IPC_LOCK",
    ]
]


def config(plan: MachinePlan, root: Path, files: dict[str, Path]) -> dict[str, Any]:
    """`config.json` for `runsc run`. `files` are the machine's own, by where the guest sees them."""
    capabilities = dict.fromkeys(("bounding", "effective", "permitted", "inheritable"), CAPABILITIES)
    # Shared memory is the sentry's, charged to the sandbox: filling it must stay far below the limit that kills the sentry.
    shared = max(16, min(64, plan.memory_bytes // (16 * 1024 * 1024)))
    return {
        "ociVersion": "1.0.0",
        "root": {"path": str(root), "readonly": False},
        "hostname": "sandbox",
        "process": {
            "args": ["/run/hutch/agent", "--connect", "/run/hutch/host.sock"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": False,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            "capabilities": capabilities,
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": 65536, "hard": 1048576},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=0755", "size=1m"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            },
            {"destination": SHARED_MEMORY, "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777", f"size={shared}m"]},
            {"destination": "/run/hutch", "type": "bind", "source": str(plan.channel_dir), "options": ["bind", "ro"]},
            {"destination": "/run/hutch/agent", "type": "bind", "source": str(plan.agent), "options": ["bind", "ro"]},
            *(
                {
                    "destination": place,
                    "type": "bind",
                    "source": str(file),
                    "options": ["bind"] if place == HOSTS else ["bind", "ro"],
                }
                for place, file in files.items()
            ),
            *(_mount(mount) for mount in plan.mounts),
        ],
        "linux": {
            "cgroupsPath": plan.cgroup,
            "resources": {
                "cpu": {"quota": plan.vcpus * CPU_PERIOD_US, "period": CPU_PERIOD_US, "shares": 1024 * plan.vcpus},
                "memory": {"limit": plan.memory_bytes},
                "pids": {"limit": MAX_PIDS},
            },
            "namespaces": [
                {"type": "pid"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
                {"type": "network", "path": str(plan.namespace)},
            ],
        },
    }


def _mount(mount: PlannedMount) -> dict[str, Any]:
    # What another sandbox left there must give nobody another user's rights. runsc's hint that nobody else has the directory
    # (`share=container`) is not given: it lays an overlay over it, in which everything that is written would be lost.
    options = ["bind", "ro" if mount.read_only else "rw", "nosuid", "nodev"]
    return {"destination": mount.path, "type": "bind", "source": str(mount.source), "options": options}
