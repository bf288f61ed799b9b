"""A root for a process that has nothing of the host but the system's read-only programs, and sees no process but itself.

The process is the first of a process namespace, with namespaces of its own for mounts, network and System V objects. Its root is
a small file system in memory: `/usr` of the host, read-only and without set-user-id programs and devices, its own `/proc`, and
what it is given by name. Everything else it has to have as a descriptor before.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from hutch.host import kernel

_USR = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SIZE = "size=256k,nr_inodes=64,mode=755"
# A heap for all threads: each of its own is memory that nobody else has.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
# Sees its own processes, waits until it is told that it is where it belongs, then becomes what is named.
_ENTER = 'mount -t proc -o nosuid,nodev,noexec,subset=pid proc /proc && read -r told && exec "$@"; exit 125'


def start(
    root: Path,
    words: Sequence[str],
    *,
    cgroups: Sequence[Path],
    files: Sequence[Path],
    descriptors: Sequence[int],
    output: int,
) -> subprocess.Popen[bytes]:
    """Start a program with its root on the empty directory `root`. Blocks until it runs. Raises `OSError`.

    It is root until it gives that up itself, and in each of `cgroups` (their directories) before its first instruction. `files`
    are those of the host that it sees at the same path. `descriptors` keep their numbers, `output` becomes its output.
    """

    # A thread may be somewhere else than its process in version 1 alone. That this one moves by itself, and all that it starts is
    # born there, spares the kernel a wait of some 10 ms for every other processor.
    born = [directory for directory in cgroups if (directory / "tasks").exists()]

    def enter() -> subprocess.Popen[bytes]:
        for directory in born:
            (directory / "tasks").write_text("0")
        kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWPID)
        _make_root(root, files)
        kernel.pivot_root(root)
        return subprocess.Popen(
            ["/usr/bin/sh", "-c", _ENTER, "sh", *words],
            cwd="/",
            env=kernel.command_environment() | _ENVIRONMENT,
            # Not of a device: there is none in there.
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=descriptors,
            # Out of the server's session: a terminal's Ctrl-C must not reach sandboxes.
            start_new_session=True,
        )

    child = kernel.apart(enter)
    assert child.stdin is not None
    try:
        with child.stdin as told:
            for directory in set(cgroups).difference(born):
                # By us: a descriptor of this file would stay with it.
                (directory / "cgroup.procs").write_text(str(child.pid))
            told.write(b"\n")
    except BaseException:
        child.kill()
        child.wait()
        raise
    return child


def _make_root(root: Path, files: Sequence[Path]) -> None:
    # Nothing that is mounted here is seen outside, and nothing from outside appears here.
    kernel.mount("", Path("/"), "none", kernel.MS_REC | kernel.MS_PRIVATE)
    plain = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", root, "tmpfs", plain, _SIZE)
    for name in ("usr", "proc"):
        _make_directory(root / name)
    _show(Path("/usr"), root / "usr", plain)
    for name in _USR:
        if Path("/", name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    for file in files:
        place = root / file.relative_to("/")
        for parent in reversed(place.relative_to(root).parents[:-1]):
            _make_directory(root / parent)
        place.touch()
        # A device has to stay one.
        _show(file, place, kernel.MS_NOSUID)
    kernel.mount("", root, "none", kernel.MS_REMOUNT | kernel.MS_RDONLY | plain, _SIZE)


def _make_directory(path: Path) -> None:
    path.mkdir(exist_ok=True)
    # Whatever our umask is: who looks in there is nobody.
    path.chmod(0o755)


def _show(source: Path, place: Path, flags: int) -> None:
    kernel.mount(str(source), place, "none", kernel.MS_BIND)
    kernel.mount("", place, "none", kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | flags)
