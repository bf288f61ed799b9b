"""System calls that Python does not offer on every version we run on. Linux only."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2
PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
LAST_CAPABILITY_FILE = Path("/proc/sys/kernel/cap_last_cap")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare_mounts() -> None:
    """Give this process its own view of mounts, of which nobody else sees changes."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    mount(None, Path("/"), MS_REC | MS_PRIVATE)


def unshare_network() -> None:
    """Give this process a network of its own, which has nothing in it."""
    _check(_libc.unshare(CLONE_NEWNET), "unshare")


def mount(source: str | Path | None, target: Path, flags: int, kind: str | None = None, options: str | None = None) -> None:
    result = _libc.mount(
        str(source).encode() if source is not None else None,
        str(target).encode(),
        kind.encode() if kind is not None else None,
        ctypes.c_ulong(flags),
        options.encode() if options is not None else None,
    )
    _check(result, f"mount {target}")


def bind(source: Path, target: Path, flags: int) -> None:
    """Show `source` at `target` with the mount options `flags`; mounts below `source` stay out."""
    mount(source, target, MS_BIND)
    mount(None, target, MS_REMOUNT | MS_BIND | flags)


def pivot_root(new_root: Path) -> None:
    """Make `new_root` (a mount point) the root, and let go of everything else."""
    os.chdir(new_root)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send that signal when the parent dies. Changing the user id forgets it."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def last_capability() -> int:
    """The highest number of a capability that this kernel knows."""
    return int(LAST_CAPABILITY_FILE.read_text())


def drop_capability(capability: int) -> None:
    """No program that this process starts can ever have that capability again."""
    _check(_libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "prctl(PR_CAPBSET_DROP)")


def no_new_privileges() -> None:
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


_SECCOMP_MODE_FILTER = 2
_AUDIT_ARCH_X86_64 = 0xC000003E
_X32 = 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_CLONE3 = 435


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse_calls(numbers: Iterable[int]) -> None:
    """Have these system calls (numbers of x86-64) fail with EACCES for good, here and in every program that this process starts.
    `no_new_privileges` comes first. There is no `clone3` then, whose arguments nobody can look at; C libraries make threads by
    `clone` without it."""
    calls = sorted(set(numbers) - {_CLONE3})
    assert len(calls) < 250, "a jump of the filter reaches 255 instructions"
    # Each is a `struct sock_filter`: operation, jumps where it is true and false, operand.
    instructions = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, len(calls) + 2, 0, _X32),
        *((_EQUAL, len(calls) + 1 - place, 0, call) for place, call in enumerate(calls)),
        (_EQUAL, 2, 0, _CLONE3),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _FAIL | errno.EACCES),
        (_RETURN, 0, 0, _FAIL | errno.ENOSYS),
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    program = _Program(len(instructions), code)
    _check(_libc.prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0), "prctl(PR_SET_SECCOMP)")
