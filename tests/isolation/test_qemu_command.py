"""The argument list of a virtual machine: nothing by path, nothing beyond need."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from hutch.isolation.qemu_command import MIB, Accelerator, Card, VirtualMachine, command, kernel_line

MACHINE = VirtualMachine(Accelerator.TCG, 2, 512 * MIB, 3, 4, (5, 6), 7, 8, 9, tsc_khz=2_000_000)


def after(words: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(words) if name == option]


def test_files_are_descriptors() -> None:
    words = command("qemu", MACHINE)
    assert MACHINE.descriptors == (3, 4, 5, 6, 7, 8, 9)
    assert after(words, "-kernel") + after(words, "-initrd") == ["/proc/self/fd/3", "/proc/self/fd/4"]
    assert after(words, "-add-fd") == ["fd=5,set=1", "fd=6,set=2", "fd=7,set=3"]
    assert [word for word in words if "/" in word and not word.startswith("/proc/self/fd/") and "/dev/fdset/" not in word] == []


def test_only_the_disk_is_written() -> None:
    drives = after(command("qemu", MACHINE), "-blockdev")
    assert ["read-only=on" in drive for drive in drives] == [True, True, False]


def test_drives_are_disks_behind_its_own() -> None:
    machine = dataclasses.replace(MACHINE, drives=(20, 21))
    words = command("qemu", machine)
    assert after(words, "-add-fd")[2:] == ["fd=7,set=3", "fd=20,set=4", "fd=21,set=5"]
    assert set(machine.descriptors) == {*MACHINE.descriptors, 20, 21}
    assert [device for device in after(words, "-device") if device.startswith("virtio-blk")][2:] == [
        f"virtio-blk-device,drive={name},serial={name},werror=report,rerror=report" for name in ("disk", "drive0", "drive1")
    ]
    # Those who read have a journal to replay, in their own copy.
    assert ["read-only=on" in drive for drive in after(words, "-blockdev")] == [True, True, False, False, False]


def test_no_device_beyond_need() -> None:
    words = command("qemu", MACHINE)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert [device.split(",")[0] for device in after(words, "-device")] == [
        "virtio-serial-device",
        "virtserialport",
        "virtio-rng-device",
        *["virtio-blk-device"] * 3,
    ]
    assert after(words, "-sandbox") == ["on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]


def test_what_a_guest_frees_is_given_back_where_the_library_for_it_is_there() -> None:
    assert command("qemu", MACHINE)[0] == "qemu"
    machine = dataclasses.replace(MACHINE, preload=12)
    words = command("qemu", machine)
    assert words[:3] == ["env", "LD_PRELOAD=/proc/self/fd/12", "qemu"]
    assert machine.descriptors[-1] == 12
    # Without `page-poison` a guest that expects zeros in what it freed reports nothing.
    assert "virtio-balloon-device,free-page-reporting=on,page-poison=off" in after(words, "-device")


def test_the_network_card_is_a_descriptor() -> None:
    assert after(command("qemu", MACHINE), "-netdev") == []
    machine = dataclasses.replace(MACHINE, card=Card(10, "02:48:64:40:00:06", "100.64.0.6", "100.64.0.5"))
    words = command("qemu", machine)
    assert machine.descriptors[-1] == 10
    assert after(words, "-netdev") == ["tap,id=link,fd=10"]
    assert "virtio-net-device,netdev=link,mac=02:48:64:40:00:06,guest_announce=off" in after(words, "-device")
    assert kernel_line(machine).endswith("hutch.address=100.64.0.6/30 hutch.gateway=100.64.0.5")


def test_a_machine_that_waits_is_told_its_address_later() -> None:
    card = Card(10, "02:48:00:00:00:01", "100.64.0.6", "100.64.0.5")
    line = kernel_line(dataclasses.replace(MACHINE, card=card, waits=True))
    assert line.endswith("hutch.layers=2 hutch.wait=1")


def test_memory_is_its_own_unless_it_is_a_file_that_many_map() -> None:
    assert after(command("qemu", MACHINE), "-object") == ["memory-backend-ram,id=ram,size=512M"]
    assert after(command("qemu", MACHINE), "-incoming") == []
    shared = dataclasses.replace(MACHINE, memory=11)
    file = "memory-backend-file,id=ram,size=512M,share={},mem-path=/proc/self/fd/11"
    assert after(command("qemu", shared), "-object") == [file.format("on")]
    assert shared.descriptors[-1] == 11
    clone = command("qemu", dataclasses.replace(shared, maps_privately=True, comes_in=True))
    assert after(clone, "-object") == [file.format("off")]
    assert after(clone, "-incoming") == ["defer"]
    # It runs when it is told to, and has what it booted with in its memory.
    assert "-S" in clone
    assert after(clone, "-kernel") + after(clone, "-initrd") + after(clone, "-append") == []
    assert not {MACHINE.kernel, MACHINE.initramfs} & set(dataclasses.replace(shared, comes_in=True).descriptors)


def test_a_machine_and_its_template_have_the_same_devices() -> None:
    card = Card(10, "02:48:00:00:00:01", "100.64.0.6", "100.64.0.5")
    template = dataclasses.replace(MACHINE, card=card, waits=True, memory=11)
    clone = dataclasses.replace(MACHINE, card=card, memory=11, maps_privately=True, comes_in=True)
    for option in ("-machine", "-accel", "-cpu", "-smp", "-m", "-device"):
        assert after(command("qemu", template), option) == after(command("qemu", clone), option)


def test_the_guest_is_told_what_the_host_has_no_room_for() -> None:
    words = command("qemu", MACHINE)
    assert [",werror=report" in device for device in after(words, "-device") if "blk" in device] == [False, False, True]
    assert ["discard=unmap" in drive for drive in after(words, "-blockdev")] == [False, False, True]


def test_the_accelerator_is_the_one_that_was_asked_for() -> None:
    assert after(command("qemu", MACHINE), "-accel") == ["tcg,tb-size=64"]
    with_kvm = dataclasses.replace(MACHINE, accelerator=Accelerator.KVM, tsc_khz=None)
    assert after(command("qemu", with_kvm), "-accel") == ["kvm"]
    assert "tsc" not in kernel_line(with_kvm)
    assert "tsc_early_khz=2000000" in kernel_line(MACHINE)
    # What would cost an emulated guest most, and is there for everybody else.
    for word in ("norandmaps", "mitigations=off"):
        assert (word in kernel_line(MACHINE).split(), word in kernel_line(with_kvm).split()) == (True, False)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"vcpus": 0}, "1 to 32 processors"),
        ({"vcpus": 33}, "1 to 32 processors"),
        ({"memory_bytes": 32 * MIB}, "at least 64"),
        ({"memory_bytes": 100 * MIB + 1}, "whole MiB"),
        ({"layers": ()}, "1 to 32 images"),
        ({"layers": tuple(range(33))}, "1 to 32 images"),
        ({"drives": tuple(range(5))}, "at most 4 drives, not 5"),
        ({"tsc_khz": None}, "time stamp counter"),
    ],
)
def test_what_can_not_be_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(MACHINE, **changed)
