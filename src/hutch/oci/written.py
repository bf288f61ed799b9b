"""The process that packs what a sandbox wrote over an image as one more layer of that image, shut in by `hutch.oci.confined`.

    /hutch-written            in: the upper directory of an overlay, read-only
    /hutch-image/image.erofs  out: the same tree, to lie over the same image as a lower one

What hides files below is kept: whiteouts are devices with the number 0, and a directory that replaces another has an attribute
that only a process with CAP_SYS_ADMIN sees. Everything else that this capability allows is given up before the tree is read.

Standard input has a `Request`, standard output gets a `Result` or a `Refusal`, as JSON.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

import msgspec

from hutch.errors import HutchError, UnavailableError
from hutch.oci import erofs
from hutch.oci.documents import invalid
from hutch.oci.unpack import INSIDE, Refusal
from hutch.serving import kernel

WRITTEN = Path("/hutch-written")
_METADATA_BYTES = 512 * 1024 * 1024
"""What an EROFS file has beside the contents of files, at most."""
# fmt: off
_REFUSED_CALLS = frozenset({
    # New views: mount, umount2, pivot_root, chroot, setns, unshare, fsopen and its like, mount_setattr.
    165, 166, 155, 161, 308, 272, 428, 429, 430, 431, 432, 433, 442,
    # Files by handle, of whatever directory; ioctl: among others those of btrfs, which read all of a file system.
    304, 16,
    # Other processes: ptrace, process_vm_readv, process_vm_writev, kill, tkill, pidfd_send_signal, pidfd_open, pidfd_getfd, kcmp.
    101, 310, 311, 62, 200, 424, 434, 438, 312,
    # The kernel: modules, kexec, bpf, perf_event_open, userfaultfd, io_uring_setup, syslog, acct, reboot.
    175, 313, 176, 246, 320, 321, 298, 323, 425, 103, 163, 169,
    # The machine: swap, quotas, fanotify, names, keys, sockets.
    167, 168, 179, 443, 300, 170, 171, 248, 249, 250, 41, 53,
    # Attributes are read and never written: setxattr, lsetxattr, fsetxattr.
    188, 189, 190,
})
# fmt: on


class Request(msgspec.Struct, frozen=True, kw_only=True):
    max_bytes: int
    room_bytes: int
    max_entries: int


class Result(msgspec.Struct, frozen=True, kw_only=True, tag="packed"):
    entries: int


def main() -> int:
    kernel.die_with_parent(signal.SIGKILL)
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    most = min(request.max_bytes, request.room_bytes) + _METADATA_BYTES
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    kernel.refuse_calls(_REFUSED_CALLS)
    answer: Result | Refusal
    try:
        entries = count(WRITTEN, request)
        erofs.pack(WRITTEN, INSIDE / "image.erofs", attributes=True)
        answer = Result(entries=entries)
    except HutchError as error:
        answer = Refusal(status=error.status, code=error.code, message=error.message)
    except MemoryError:
        refused = invalid("it takes more memory to pack than an image may take")
        answer = Refusal(status=refused.status, code=refused.code, message=refused.message)
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    return 0


def count(tree: Path, request: Request) -> int:
    """How many names there are. No link is followed. Raises `BadRequestError` (`image_invalid`) beyond a bound, and
    `UnavailableError` (`disk_full`)."""
    entries = size = 0
    waiting = [os.fsencode(tree)]
    try:
        while waiting:
            with os.scandir(waiting.pop()) as names:
                for name in names:
                    entries += 1
                    if name.is_dir(follow_symlinks=False):
                        waiting.append(name.path)
                    elif name.is_file(follow_symlinks=False):
                        # Holes count: in the packed file they are zeros.
                        size += name.stat(follow_symlinks=False).st_size
                    if entries > request.max_entries:
                        raise invalid(f"it has more than {request.max_entries} files (image.max_entries)")
                    if size > request.max_bytes:
                        raise invalid(f"its files have more than {request.max_bytes} bytes (image.max_bytes)")
    except OSError as error:
        raise invalid(f"it can't be read: {error.strerror}") from error
    if size > request.room_bytes:
        raise UnavailableError(
            "disk_full", f"The image needs {size} bytes of disk, and the host has {request.room_bytes} for it."
        )
    return entries


if __name__ == "__main__":
    sys.exit(main())
