"""Templates: memory of a machine that has booted and waits, which others begin with.

    boot, memory in a file ─▶ the agent waits ─▶ stop ─▶ devices written ─▶ QEMU ends ─▶ the file is sealed
    begin: the file mapped privately, devices read ─▶ run ─▶ the host says what the machine is (`machine.begin`)

Nothing of a sandbox is in one. Of a kind that waits, no image and no disk was looked at and no address was set; of one that has
an image mounted (`qemu_making.py`), no program of it has run, and its disk is kept too. All files are the kernel's memory
(memfd): they end with this host process and the machines that map them. Once sealed, nobody can write to them, QEMU neither,
who has to open its memory for writing.

The first who wants a kind of machine makes its template, and a few who come meanwhile wait: that is one boot for all of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

MOST = 8
"""Templates at a time: each holds what a kernel and the agent need, some tens of MiB."""
MOST_WAITING = 4
"""Who wait for one template, its maker among them: each keeps one of the host's threads meanwhile. More boot by themselves."""
MOST_WAITING_IN_ALL = 6
"""The same of all kinds together: who ends, meters and seals machines needs threads too."""
MOST_ASKED = 64
"""Of how many kinds it is known that somebody wanted one."""
REST_S = 60.0
"""How long nobody tries again to make one that could not be made."""
_F_ADD_SEALS, _SEAL_ALL = 1033, 0x1 | 0x2 | 0x4 | 0x8
_SEAL_TRIES, _SEAL_PAUSE_S = 100, 0.02


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes two machines begin alike. `files` tells QEMU, kernel and initramfs from others of their names.

    With `disk_bytes` it is one that has its images, whose files are among `files` then, and a new disk of that size mounted; else
    one that waits.
    """

    files: tuple[tuple[int, ...], ...]
    vcpus: int
    memory_bytes: int
    layers: int
    card: bool
    disk_bytes: int = 0
    drives: int = 0


@dataclass(frozen=True, slots=True)
class Template:
    """Descriptors: of memory, of devices, and of the disk that was mounted, if one was."""

    memory: int
    devices: int
    disk: int | None = None

    def reading(self) -> int:
        """A descriptor of the devices, at their beginning. The caller closes it. Raises `OSError`."""
        return os.open(f"/proc/self/fd/{self.devices}", os.O_RDONLY | os.O_CLOEXEC)

    def copy(self) -> Template:
        """The same with descriptors of its own. Raises `OSError`."""
        with contextlib.ExitStack() as undo:
            copies = []
            for descriptor in self._descriptors:
                copies.append(os.dup(descriptor))
                undo.callback(os.close, copies[-1])
            undo.pop_all()
        return Template(*copies)

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    @property
    def _descriptors(self) -> tuple[int, ...]:
        return (self.memory, self.devices) if self.disk is None else (self.memory, self.devices, self.disk)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a machine's memory begins with, beside a boot: `memory` is a file for it, its own or, if `sealed`, that of others;
    `state` is what is read before it runs; `line` is another kernel's command line. `waits`: it is to be a template. `saved`:
    `memory` is what was saved of another machine, a file that it only reads.
    """

    line: str | None = None
    memory: int | None = None
    sealed: bool = False
    state: int | None = None
    waits: bool = False
    saved: bool = False


def file(name: str, size_bytes: int = 0) -> int:
    """A descriptor of a file in memory that can be sealed. Raises `OSError`."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size_bytes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def seal(descriptor: int) -> None:
    """Let nobody write to a file any more. Raises `OSError`."""
    for left in reversed(range(_SEAL_TRIES)):
        try:
            fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEAL_ALL)
        except OSError:
            # Somebody who wrote to it has just ended.
            if not left:
                raise
            time.sleep(_SEAL_PAUSE_S)
        else:
            return


@dataclass(slots=True)
class _Place:
    """One kind's template, made by one at a time."""

    gate: threading.Lock = field(default_factory=threading.Lock)
    template: Template | None = None
    waiting: int = 0
    rests_until: float = 0.0
    used: float = 0.0


class Templates:
    """The templates of one backend in this host process. For many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[Kind, _Place] = {}
        self._asked: dict[Kind, None] = {}

    @contextlib.contextmanager
    def using(self, kind: Kind, make: Callable[[], Template]) -> Iterator[Template | None]:
        """A kind's template, made where there is none; None where it can't be made, or too many wait for whoever makes it."""
        template = self._take(kind, make)
        try:
            yield template
        finally:
            if template is not None:
                template.close()

    def wanted_again(self, kind: Kind) -> bool:
        """Whether a kind was asked for before, and not long ago."""
        with self._lock:
            again = kind in self._asked
            self._asked.pop(kind, None)
            self._asked[kind] = None
            if len(self._asked) > MOST_ASKED:
                del self._asked[next(iter(self._asked))]
            return again

    def _take(self, kind: Kind, make: Callable[[], Template]) -> Template | None:
        with self._lock:
            place = self._places.setdefault(kind, _Place())
            place.used = time.monotonic()
            self._forget_unused()
            waiting = sum(each.waiting for each in self._places.values())
            if place.template is None and (place.waiting >= MOST_WAITING or waiting >= MOST_WAITING_IN_ALL):
                return None
            place.waiting += 1
        try:
            with place.gate:
                if place.template is None and time.monotonic() >= place.rests_until:
                    self._make(place, make)
                return place.template.copy() if place.template is not None else None
        finally:
            with self._lock:
                place.waiting -= 1

    @staticmethod
    def _make(place: _Place, make: Callable[[], Template]) -> None:
        try:
            place.template = make()
        except OSError as error:
            place.rests_until = time.monotonic() + REST_S
            log.warning("machines begin without a template for %.0f s, since none could be made: %s", REST_S, error)

    def _forget_unused(self) -> None:
        unused = sorted(self._places, key=lambda kind: self._places[kind].used)[:-MOST]
        for kind in unused:
            place = self._places[kind]
            # One that is being made, or waited for, is wanted.
            if not place.waiting and place.gate.acquire(blocking=False):
                try:
                    self._clear(place)
                    del self._places[kind]
                finally:
                    place.gate.release()

    def throw_away(self, kind: Kind) -> None:
        """Have a kind's template made again by whoever wants it next."""
        with self._lock:
            place = self._places.get(kind)
        if place is not None:
            with place.gate:
                self._clear(place)

    @staticmethod
    def _clear(place: _Place) -> None:
        if place.template is not None:
            place.template.close()
            place.template = None

    def close(self) -> None:
        with self._lock:
            kinds = list(self._places)
        for kind in kinds:
            self.throw_away(kind)
