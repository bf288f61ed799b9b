"""The argument list of one virtual machine, as a value.

QEMU runs as a user that owns nothing, so it opens no file by a path of the host's: each is a descriptor that it inherits. Block
devices take theirs as a *set* (`-add-fd`), kernel and initramfs by their place in `/proc/self/fd`.

The machine is `microvm`: no PCI, a serial line as console, and ACPI in its reduced form, in which Debian's kernel finds virtio
devices (it does not read their places from its command line). That form has no timer to calibrate with, so a guest under TCG is
told the rate of the time stamp counter, or it would wait for its first tick for ever; KVM's clock tells it by itself. It has few
places for devices: a machine of more images than those hold has PCI too, and the highest ones there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hutch import images
from hutch.isolation.protocol import LINK_PREFIX

MIB = 1024 * 1024
MIN_MEMORY_BYTES, MAX_LAYERS, MAX_DRIVES = 64 * MIB, images.MAX_LAYERS, 4
PLACES = 23
"""For virtio devices that are none of PCI. QEMU's `microvm` has one more, but a machine that uses that one too does not answer.
Channel, entropy, disk, network and free memory are five."""
EMULATED = ("norandmaps", "mitigations=off")
"""What an emulated guest does without. Code that is at other addresses in each process is translated in each, so that a short
command takes three times as long; and its kernel's guards against speculation are made for real processors."""
TRANSLATION_CACHE_MIB = 64
"""Private to each machine under TCG; QEMU's own default is a gigabyte."""
MEMORY = "ram"
BALLOON = "virtio-balloon-device,free-page-reporting=on,page-poison=off"
"""It holds nothing: the guest tells by it which pages it has freed. One that expects something in those (`init_on_free`) would
have to say so to the device; where it can't, it reports none."""
SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


class Accelerator(StrEnum):
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class Card:
    """A network card: the descriptor of a tap, and what the guest is told of itself and of the host, which all packets go to."""

    tap: int
    hardware: str
    address: str
    gateway: str


@dataclass(frozen=True, slots=True)
class VirtualMachine:
    """What a machine is made of. All but the numbers of size are descriptors that QEMU inherits.

    `layers` are EROFS images, the lowest first; `disk` is an ext4 image that no guest shares, and so are the `drives`; `channel`
    listens for the host, who speaks with the agent there; `monitor` listens for QMP. `tsc_khz` is the rate of the host's time
    stamp counter, which TCG needs. `waits`: its agent waits for the host before it mounts anything. `comes_in`: it becomes what
    the monitor tells it to read, and runs when that says so. `memory` is a file that its memory is in: its own, or with
    `maps_privately` one that nobody may write to. With `preload`, the library `crates/preload`, what the guest frees goes back
    to the host, and such a file may be one that it only reads.
    """

    accelerator: Accelerator
    vcpus: int
    memory_bytes: int
    kernel: int
    initramfs: int
    layers: tuple[int, ...]
    disk: int
    channel: int
    monitor: int
    tsc_khz: int | None = None
    card: Card | None = None
    waits: bool = False
    comes_in: bool = False
    memory: int | None = None
    maps_privately: bool = False
    preload: int | None = None
    drives: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.vcpus <= 32:
            raise ValueError(f"A virtual machine has 1 to 32 processors, not {self.vcpus}.")
        if self.memory_bytes < MIN_MEMORY_BYTES or self.memory_bytes % MIB:
            raise ValueError(
                f"A virtual machine's memory is whole MiB, at least {MIN_MEMORY_BYTES // MIB}, not {self.memory_bytes} bytes."
            )
        if self.accelerator is Accelerator.TCG and not self.tsc_khz:
            raise ValueError("An emulated machine has to know the rate of the time stamp counter.")
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise ValueError(f"A virtual machine has 1 to {MAX_LAYERS} images, not {len(self.layers)}.")
        if len(self.drives) > MAX_DRIVES:
            raise ValueError(f"A virtual machine has at most {MAX_DRIVES} drives, not {len(self.drives)}.")

    @property
    def places_for_layers(self) -> int:
        """How many images are no devices of PCI."""
        others = 3 + (self.card is not None) + (self.preload is not None) + len(self.drives)
        return PLACES - others

    @property
    def descriptors(self) -> tuple[int, ...]:
        tap = () if self.card is None else (self.card.tap,)
        memory = () if self.memory is None else (self.memory,)
        preload = () if self.preload is None else (self.preload,)
        disks = (*self.layers, self.disk, *self.drives)
        boots = () if self.comes_in else (self.kernel, self.initramfs)
        return (*boots, *disks, self.channel, self.monitor, *tap, *memory, *preload)


def kernel_line(machine: VirtualMachine) -> str:
    """The kernel's command line. A panic or a restart ends QEMU, at once: nobody waits for a dead machine."""
    words = [*_kernel_words(machine.tsc_khz), f"hutch.layers={len(machine.layers)}"]
    if machine.waits:
        words += ["hutch.wait=1"]
    elif machine.card is not None:
        words += [f"hutch.address={machine.card.address}/{LINK_PREFIX}", f"hutch.gateway={machine.card.gateway}"]
    return " ".join(words)


def kernel_line_alone(tsc_khz: int | None) -> str:
    """The same for a machine whose agent stays in the initramfs, and mounts nothing by itself."""
    return " ".join([*_kernel_words(tsc_khz), "hutch.layers=0"])


def _kernel_words(tsc_khz: int | None) -> list[str]:
    words = ["console=ttyS0", "quiet", "loglevel=3", "panic=-1", "oops=panic", "reboot=t"]
    if tsc_khz:
        words += [f"tsc_early_khz={tsc_khz}", "tsc=reliable", *EMULATED]
    return [*words, "hutch.vm=1"]


def command(binary: str, machine: VirtualMachine, line: str | None = None) -> list[str]:
    """The program and its arguments. `line` replaces the kernel's command line. The console is standard output."""
    words = [] if machine.preload is None else ["env", f"LD_PRELOAD=/proc/self/fd/{machine.preload}"]
    words += [binary, "-name", "hutch", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", SECCOMP]
    words += [
        "-machine",
        f"microvm,acpi=on,pic=on,pit=on,rtc=on,x-option-roms=off,isa-serial=on,usb=off,graphics=off,memory-backend={MEMORY}"
        + (",pcie=on" if len(machine.layers) > machine.places_for_layers else ""),
    ]
    if machine.accelerator is Accelerator.TCG:
        words += ["-accel", f"tcg,tb-size={TRANSLATION_CACHE_MIB}", "-cpu", "max"]
    else:
        words += ["-accel", "kvm", "-cpu", "host"]
    words += ["-smp", str(machine.vcpus), "-m", f"{machine.memory_bytes // MIB}M", "-object", _memory(machine)]
    if machine.comes_in:
        words += ["-S", "-incoming", "defer"]
    if not machine.comes_in:
        # Elsewhere they are in the memory already, and here each machine would hold them once more.
        words += ["-kernel", f"/proc/self/fd/{machine.kernel}", "-initrd", f"/proc/self/fd/{machine.initramfs}"]
        words += ["-append", kernel_line(machine) if line is None else line]
    words += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    words += ["-chardev", f"socket,id=monitor,fd={machine.monitor},server=on,wait=off", "-mon", "chardev=monitor,mode=control"]
    # One port: it is the first, so no console of virtio takes its number.
    words += ["-device", "virtio-serial-device,max_ports=2"]
    # One host after another: when one goes, the guest is told, and the next connects to the same socket.
    words += ["-chardev", f"socket,id=channel,fd={machine.channel},server=on,wait=off"]
    words += ["-device", "virtserialport,id=agent,chardev=channel,name=hutch,nr=1"]
    words += ["-device", "virtio-rng-device"]
    if machine.preload is not None:
        words += ["-device", BALLOON]
    if machine.card is not None:
        words += ["-netdev", f"tap,id=link,fd={machine.card.tap}"]
        # Nobody is told that it goes on elsewhere: Linux 6.12 stands still for ever when its card is switched off meanwhile.
        words += ["-device", f"virtio-net-device,netdev=link,mac={machine.card.hardware},guest_announce=off"]
    for number, descriptor in enumerate(machine.layers):
        words += _block(f"layer{number}", descriptor, number + 1, read_only=True, pci=number >= machine.places_for_layers)
    words += _block("disk", machine.disk, len(machine.layers) + 1, read_only=False)
    for number, descriptor in enumerate(machine.drives):
        # A reader's too: its own copy, whose journal it may have to replay.
        words += _block(f"drive{number}", descriptor, len(machine.layers) + 2 + number, read_only=False)
    return words


def _memory(machine: VirtualMachine) -> str:
    # Of one name, whatever it is: a stream of memory has it.
    size = f"id={MEMORY},size={machine.memory_bytes // MIB}M"
    if machine.memory is None:
        return f"memory-backend-ram,{size}"
    share = "off" if machine.maps_privately else "on"
    return f"memory-backend-file,{size},share={share},mem-path=/proc/self/fd/{machine.memory}"


def _block(name: str, descriptor: int, fd_set: int, *, read_only: bool, pci: bool = False) -> list[str]:
    # Locks of files are the host's business: an image is shared by all machines, a disk belongs to one.
    drive = f"driver=raw,node-name={name},read-only={'on' if read_only else 'off'},file.driver=file,file.locking=off"
    device = f"virtio-blk-{'pci' if pci else 'device'},drive={name},serial={name}"
    if not read_only:
        # What a guest deletes is a hole in the file. Where the host has no room, the guest is told: a machine that stands still
        # until there is some would look like a dead one.
        drive += ",discard=unmap,detect-zeroes=unmap,file.discard=unmap"
        device += ",werror=report,rerror=report"
    return [
        "-add-fd",
        f"fd={descriptor},set={fd_set}",
        "-blockdev",
        f"{drive},file.filename=/dev/fdset/{fd_set}",
        "-device",
        device,
    ]
