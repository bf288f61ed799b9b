"""Templates: made once, by one of those who want them; nobody can write to them; one that does not work is made again."""

from __future__ import annotations

import dataclasses
import mmap
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.host import kernel
from hutch.host.cgroups import Cgroups
from hutch.isolation import qemu_template
from hutch.isolation.protocol import MachinePlan
from hutch.isolation.qemu_making import Maker
from hutch.isolation.qemu_template import Kind, Template, Templates, file, seal
from tests.conftest import wait_until

KIND = Kind(((1, 2, 3, 4),), 1, 256, 1, card=True)


def other(number: int) -> Kind:
    return Kind(((1, 2, 3, 4),), 10 + number, 256, 1, card=True)


def template() -> Template:
    return Template(file("memory", 4096), file("devices"))


def opened() -> list[str]:
    """The descriptors of this process, but for that which lists them."""
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir() if entry.exists())


@pytest.fixture
def templates() -> Iterator[Templates]:
    before = opened()
    made = Templates()
    yield made
    made.close()
    assert opened() == before


def test_nobody_writes_to_what_is_sealed() -> None:
    made = template()
    os.write(made.memory, b"kernel")
    with mmap.mmap(made.memory, 4096, mmap.MAP_SHARED) as shared:
        shared[6:7] = b"!"
    seal(made.memory)
    # QEMU has to open it for writing, and may.
    opened = os.open(f"/proc/self/fd/{made.memory}", os.O_RDWR)
    for change in (
        lambda: os.write(opened, b"x"),
        lambda: os.ftruncate(opened, 0),
        lambda: os.ftruncate(opened, 8192),
        lambda: mmap.mmap(opened, 4096, mmap.MAP_SHARED),
    ):
        with pytest.raises(OSError, match="not permitted"):
            change()
    with mmap.mmap(opened, 4096, mmap.MAP_PRIVATE) as private:
        private[:4] = b"mine"
        assert private[:7] == b"mineel!"
    assert os.pread(made.memory, 7, 0) == b"kernel!"
    os.close(opened)
    made.close()


def test_the_devices_are_read_from_their_beginning_by_each() -> None:
    made = template()
    os.write(made.devices, b"devices")
    for _ in range(2):
        reading = made.reading()
        assert os.read(reading, 100) == b"devices"
        os.close(reading)
    made.close()


def test_one_makes_it_for_all(templates: Templates) -> None:
    calls: list[int] = []
    gate = threading.Event()

    def make() -> Template:
        calls.append(1)
        assert gate.wait(60)
        return template()

    found: list[bool] = []

    def want() -> None:
        with templates.using(KIND, make) as got:
            found.append(got is not None)

    threads = [threading.Thread(target=want) for _ in range(qemu_template.MOST_WAITING + 2)]
    for thread in threads:
        thread.start()
    # Those for whom there is no thread to wait in boot.
    wait_until(lambda: len(found) == 2, 60, lambda: f"{found}")
    gate.set()
    for thread in threads:
        thread.join()
    assert (calls, found) == ([1], [False] * 2 + [True] * qemu_template.MOST_WAITING)


def test_those_who_wait_for_many_kinds_leave_threads_to_others(templates: Templates) -> None:
    gate, lock = threading.Event(), threading.Lock()
    making, found = 0, []

    def make() -> Template:
        nonlocal making
        with lock:
            making += 1
        assert gate.wait(60)
        return template()

    def want(vcpus: int) -> None:
        with templates.using(dataclasses.replace(KIND, vcpus=vcpus), make) as got:
            found.append(got is not None)

    threads = [threading.Thread(target=want, args=(vcpus,)) for vcpus in range(1, qemu_template.MOST_WAITING_IN_ALL + 3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(found) == 2 and making == qemu_template.MOST_WAITING_IN_ALL, 60, lambda: f"{found}, {making}")
    gate.set()
    for thread in threads:
        thread.join()
    assert found == [False] * 2 + [True] * qemu_template.MOST_WAITING_IN_ALL


def test_one_that_can_not_be_made_is_not_tried_at_once(
    templates: Templates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def make() -> Template:
        calls.append(1)
        raise OSError("no kernel")

    for _ in range(3):
        with templates.using(KIND, make) as got:
            assert got is None
    assert calls == [1]
    assert [record.message for record in caplog.records] == [
        "machines begin without a template for 60 s, since none could be made: no kernel"
    ]
    monkeypatch.setattr(qemu_template, "REST_S", 0.0)
    with templates.using(other(2), make), templates.using(other(2), template) as got:
        assert got is not None


def test_what_is_thrown_away_is_made_again_and_who_uses_it_keeps_it(templates: Templates) -> None:
    with templates.using(KIND, template) as first:
        assert first is not None
        os.write(first.memory, b"first")
        templates.throw_away(KIND)
        with templates.using(KIND, template) as second:
            assert second is not None
            assert os.pread(second.memory, 5, 0) == bytes(5)
        assert os.pread(first.memory, 5, 0) == b"first"
    templates.throw_away(other(3))


def test_the_longest_unused_goes_first(templates: Templates) -> None:
    kinds = [other(number) for number in range(qemu_template.MOST)]
    for kind in kinds:
        with templates.using(kind, template):
            pass
    with templates.using(kinds[0], pytest.fail):
        pass
    with templates.using(KIND, template), templates.using(kinds[0], pytest.fail):
        pass
    made: list[int] = []

    def again() -> Template:
        made.append(1)
        return template()

    with templates.using(kinds[1], again):
        pass
    assert made == [1]


def test_a_kind_is_wanted_again_once_it_was_wanted(templates: Templates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_template, "MOST_ASKED", 2)
    assert not templates.wanted_again(KIND)
    assert templates.wanted_again(KIND)
    assert not templates.wanted_again(other(1))
    assert templates.wanted_again(KIND)
    # The longest ago is forgotten.
    assert not templates.wanted_again(other(2))
    assert not templates.wanted_again(other(1))


def test_a_template_with_a_disk_is_copied_and_closed_whole(templates: Templates) -> None:
    made = Template(file("memory", 4096), file("devices"), file("disk", 4096))
    os.write(made.disk or 0, b"files")
    with templates.using(KIND, lambda: made) as got:
        assert got is not None
        assert got.disk is not None
        assert os.pread(got.disk, 5, 0) == b"files"


def test_a_machine_that_dies_while_a_template_is_made_is_not_waited_for(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    process = kernel.process(child.pid)
    child.kill()
    child.wait()
    maker = Maker(
        directory=tmp_path,
        cgroups=Cgroups.detect(),
        probe_root=tmp_path,
        boot_timeout_s=3600,
        start=lambda *_: process,
        monitor=lambda _: pytest.fail("nobody is there to be asked"),
        end=lambda *_: ": its kernel panicked",
    )
    plan = MachinePlan(
        machine_id="m",
        directory=tmp_path,
        lowers=(tmp_path,),
        layer=tmp_path,
        channel_dir=tmp_path,
        agent=tmp_path,
        namespace=tmp_path,
        nameserver="",
        cgroup="",
        vcpus=1,
        memory_bytes=512 * 2**20,
    )
    with pytest.raises(OSError, match="ended before its agent answered: its kernel panicked"):
        maker.waiting(plan)
