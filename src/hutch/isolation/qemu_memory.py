"""A virtual machine's memory and devices, saved while it stands still, for a new one that has not run yet.

    memory, devices   of a machine that has its memory in a file which others have too: `qemu_pages.py`
    state             of another one: QEMU's own stream of everything

QEMU opens no file: it gets a descriptor over its monitor's socket. What it writes of a sandbox goes through a pipe, so that
it keeps no way to a file of the host's, and the host writes no more of it than a machine of that size can have. What it reads
it may take for anything: it does so in its jail, and a stream that is none ends it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from hutch.host import kernel
from hutch.isolation.qemu_pages import Mapping, devices, header, keep_own
from hutch.isolation.qmp import Monitor, MonitorFailed

STATE, MEMORY, DEVICES = "state", "memory", "devices"
BEGUN = "memory.begun"
"""The memory before it is whole."""
COPY_TIMEOUT_S = 300.0
DEVICES_SET = 1000
"""Beyond the numbers of what QEMU was started with."""
DEVICES_BYTES = 64 * 1024 * 1024
"""What a stream may have beside the guest's memory: devices, firmware, and tables."""
PAGE_BYTES, PAGE_HEADER_BYTES = 4096, 16
PORT, PORT_DEVICE = "channel", "agent"
PORT_TIMEOUT_S = 2.0
STREAM_TIMEOUT_S = 120.0
LEFT_TIMEOUT_S = 10.0
_POLL_S, _LOOK_S = 0.002, 0.2
_PIPE_BYTES = 1024 * 1024
_BANDWIDTH = 1 << 40
"""Bytes a second: QEMU's own bound is for networks."""


def stand_still(asked: Monitor) -> None:
    """Stop a machine whose channel was hung up, once its agent has noticed that: one that was told of an end and a beginning at
    once would wait for its former host. `asked` tells most surely when it was connected before that. Raises `MonitorFailed`."""
    deadline = time.monotonic() + PORT_TIMEOUT_S
    while _port_is_open(asked) and PORT_DEVICE not in asked.closed_ports and time.monotonic() < deadline:
        # Its event may have come before we were connected, or be held back after another one.
        time.sleep(_POLL_S)
    asked.ask("stop")


def _port_is_open(asked: Monitor) -> bool:
    told = asked.ask("query-chardev")
    ports = [each for each in told if isinstance(each, dict)] if isinstance(told, list) else []
    return any(port.get("label") == PORT and port.get("frontend-open") is True for port in ports)


def go_on(asked: Monitor) -> None:
    """Have a machine that may stand still run, also one of which a dead host was saving the memory. Raises `MonitorFailed`."""
    status = asked.status()
    if status == "running":
        return
    if _stream_state(asked)[0] in ("setup", "active", "device", "cancelling"):
        asked.ask("migrate_cancel")
        deadline = time.monotonic() + LEFT_TIMEOUT_S
        while _stream_state(asked)[0] in ("setup", "active", "device", "cancelling") and time.monotonic() < deadline:
            # As below.
            time.sleep(_POLL_S)
    asked.ask("cont")


def write(asked: Monitor, sink: int, *, without_memory: bool, timeout_s: float = STREAM_TIMEOUT_S) -> None:
    """Have a machine that stands still written to a descriptor; `without_memory`, what it shares with others by a file is left
    out. Raises `MonitorFailed`."""
    _agree(asked, without_memory=without_memory)
    asked.ask("migrate-set-parameters", **{"max-bandwidth": _BANDWIDTH})
    asked.give(STATE, sink)
    asked.ask("migrate", uri=f"fd:{STATE}")
    _wait(asked, timeout_s)


def read(asked: Monitor, source: int, *, without_memory: bool, timeout_s: float = STREAM_TIMEOUT_S) -> None:
    """Have a machine that has not run become what a descriptor tells. Raises `MonitorFailed`."""
    _agree(asked, without_memory=without_memory)
    asked.give(STATE, source)
    asked.ask("migrate-incoming", uri=f"fd:{STATE}")
    _wait(asked, timeout_s)


def _agree(asked: Monitor, *, without_memory: bool) -> None:
    capabilities = [{"capability": "x-ignore-shared", "state": without_memory}]
    asked.ask("migrate-set-capabilities", capabilities=capabilities)


def _wait(asked: Monitor, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        state, said = _stream_state(asked)
        if state == "completed":
            return
        if state in ("failed", "cancelled"):
            raise MonitorFailed(f"QEMU's stream of memory {state}: {said}")
        # Its event is a capability, which would be part of what a stream and its reader agree on.
        time.sleep(_POLL_S)
    raise MonitorFailed(f"QEMU's stream of memory did not end within {timeout_s:g} s")


def _stream_state(asked: Monitor) -> tuple[str, str]:
    told = asked.ask("query-migrate")
    if not isinstance(told, dict):
        raise MonitorFailed("QEMU's monitor told of its stream of memory in a form that is none")
    return str(told.get("status", "none"))[:100], str(told.get("error-desc", "no reason was given"))[:500]


def most_bytes(memory_bytes: int) -> int:
    """How long the stream of a machine with so much memory may be."""
    return memory_bytes + memory_bytes // PAGE_BYTES * PAGE_HEADER_BYTES + DEVICES_BYTES


def begin(file: Path, mapped: Mapping) -> None:
    """Copy the file of a machine's memory, while it runs, to a new file with holes where it is zero: in no time where the file
    system can have the same blocks in both. Raises `OSError`."""
    with mapped.file() as source:
        words = ["cp", "--sparse=always", "--reflink=auto", "--", f"/proc/self/fd/{source}", str(file)]
        kernel.run(words, timeout_s=COPY_TIMEOUT_S, keep_open=(source,))
    file.chmod(0o600)


def finish(asked: Monitor, image: Path, mapped: Mapping, memory_bytes: int) -> None:
    """Have what was begun become the memory of a machine, which stands still, and write its devices. Raises `OSError`."""
    begun = os.open(image / BEGUN, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.ftruncate(begun, memory_bytes)
        keep_own(mapped, begun)
    finally:
        os.close(begun)
    with (image / DEVICES).open("xb") as file:
        (image / DEVICES).chmod(0o600)
        file.write(header(memory_bytes) + devices(_devices(asked)))
    (image / BEGUN).rename(image / MEMORY)


@contextlib.contextmanager
def kept(image: Path, memory_bytes: int) -> Iterator[tuple[int, int]]:
    """Descriptors, for reading, of the memory and the devices that `finish` wrote. Raises `OSError` for what can't be those of a
    machine of this size: one whose memory ends early would go on, and end in the middle of something."""
    with contextlib.ExitStack() as opened:
        found = []
        for name, least, most in ((MEMORY, memory_bytes, memory_bytes), (DEVICES, 1, DEVICES_BYTES)):
            # Not one that waits for somebody at its other end.
            descriptor = os.open(image / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            opened.callback(os.close, descriptor)
            told = os.fstat(descriptor)
            if not stat.S_ISREG(told.st_mode) or not least <= told.st_size <= most:
                raise OSError(f"{image / name} has {told.st_size} bytes, which such a machine's has not")
            found.append(descriptor)
        yield found[0], found[1]


def _devices(asked: Monitor) -> bytes:
    """What QEMU tells of everything but memory. It truncates what it writes to, so it gets a file: in memory, which counts to the
    bound of whoever writes."""
    with open(os.memfd_create("hutch-devices", os.MFD_CLOEXEC), "rb", buffering=0) as told:
        sink = os.open(f"/proc/self/fd/{told.fileno()}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            asked.lend(DEVICES_SET, sink)
        finally:
            os.close(sink)
        asked.ask("xen-save-devices-state", filename=f"/dev/fdset/{DEVICES_SET}")
        asked.ask("remove-fd", **{"fdset-id": DEVICES_SET})
        found = told.read(DEVICES_BYTES + 1)
    if len(found) > DEVICES_BYTES:
        raise OSError("QEMU told more of its devices than they can have")
    return found


def save(asked: Monitor, file: Path, memory_bytes: int) -> None:
    """Write everything of a machine that stands still into a new file. Raises `OSError`, and there is no file then."""
    most = most_bytes(memory_bytes)
    try:
        with file.open("xb", buffering=0) as kept:
            file.chmod(0o600)
            output, sink = os.pipe2(os.O_CLOEXEC)
            keeper = _Keeper(output, kept.fileno(), most)
            try:
                try:
                    with contextlib.suppress(OSError):
                        # Fewer wake-ups; a kernel that has no room for it goes without.
                        fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
                    keeper.start()
                    write(asked, sink, without_memory=False)
                finally:
                    os.close(sink)
                keeper.join(LEFT_TIMEOUT_S)
                if keeper.is_alive():
                    raise MonitorFailed("QEMU keeps the pipe for its memory open")
            except MonitorFailed as error:
                raise keeper.failed or error from error
            finally:
                keeper.close()
            if keeper.failed is not None:
                raise keeper.failed
    except BaseException:
        file.unlink(missing_ok=True)
        raise


class _Keeper(threading.Thread):
    """Copies a pipe to a file, at most `most` bytes, until it ends."""

    def __init__(self, output: int, kept: int, most: int) -> None:
        super().__init__(name="qemu-memory", daemon=True)
        self.failed: OSError | None = None
        self._output = output
        self._kept = kept
        self._left = most
        self._over = threading.Event()

    def run(self) -> None:
        try:
            self._copy()
        except OSError as error:
            self.failed = error
        finally:
            # Who writes more is told at once.
            os.close(self._output)

    def _copy(self) -> None:
        while not self._over.is_set():
            readable, _, _ = select.select([self._output], [], [], _LOOK_S)
            if not readable:
                continue
            block = os.read(self._output, _PIPE_BYTES)
            if not block:
                return
            self._left -= len(block)
            if self._left < 0:
                raise OSError("QEMU wrote more than a machine of this size has")
            view = memoryview(block)
            while view:
                view = view[os.write(self._kept, view) :]

    def close(self) -> None:
        """End in any case."""
        self._over.set()
        if self.ident is None:
            os.close(self._output)
        else:
            self.join()
