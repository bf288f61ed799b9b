"""Does this machine's KVM really run a guest's kernel?

`/dev/kvm` may open and answer every question and still emulate kernel-mode code in software, thousands of times slower and
with instructions missing. So the probe runs a guest: some kernel-mode code with an instruction that every kernel uses and 20
million others. It runs in a process of its own with a deadline, because a stuck guest can't be interrupted otherwise.

Passing is necessary, not sufficient: a backend still boots its real guest before it is used.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DEVICE = "/dev/kvm"
DEADLINE_S = 5.0
_API_VERSION = 12
_GET_API_VERSION, _CREATE_VM, _GET_VCPU_MMAP_SIZE = 0xAE00, 0xAE01, 0xAE04
_CREATE_VCPU, _SET_TSS_ADDR, _RUN = 0xAE41, 0xAE47, 0xAE80
_SET_USER_MEMORY_REGION, _SET_REGS = 0x4020AE46, 0x4090AE82
_GET_SREGS, _SET_SREGS = 0x8138AE83, 0x4138AE84
_EXIT_HLT, _EXIT_INTERNAL_ERROR = 5, 17
_CODE_ADDRESS, _MEMORY_BYTES = 0x1000, 0x10000
# 16-bit mode: popcnt ax, cx; mov ecx, 10_000_000; 1: dec ecx; jnz 1b; hlt
_CODE = bytes.fromhex("f30fb8c1 66b980969800 6649 75fc f4")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether KVM is usable, and why or why not."""

    usable: bool
    reason: str


def probe() -> Verdict:
    """Run the guest. Blocks for at most the deadline."""
    if not Path(DEVICE).exists():
        return Verdict(False, f"{DEVICE} does not exist: no hardware virtualization, or it is not passed on to this machine")
    if platform.machine() != "x86_64":
        return Verdict(False, f"this release has no probe for {platform.machine()}")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hutch.isolation.kvm"], capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Verdict(False, f"{DEVICE} opens, but a guest's kernel-mode code did not end in {DEADLINE_S:.0f} s: it is emulated")
    said = (done.stdout.strip() or done.stderr.strip() or f"the probe ended with {done.returncode}").splitlines()[-1]
    return Verdict(done.returncode == 0, said)


def run_guest() -> str:
    """Run the code in this process; what to say about it. Raises `OSError`."""
    kvm = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    version = fcntl.ioctl(kvm, _GET_API_VERSION, 0)
    if version != _API_VERSION:
        raise OSError(f"{DEVICE} speaks version {version}, not {_API_VERSION}")
    machine = fcntl.ioctl(kvm, _CREATE_VM, 0)
    memory = mmap.mmap(-1, _MEMORY_BYTES)
    memory[_CODE_ADDRESS : _CODE_ADDRESS + len(_CODE)] = _CODE
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(machine, _SET_TSS_ADDR, 0x7FFBD000)
    fcntl.ioctl(machine, _SET_USER_MEMORY_REGION, struct.pack("IIQQQ", 0, 0, 0, _MEMORY_BYTES, address))
    processor = fcntl.ioctl(machine, _CREATE_VCPU, 0)
    shared = mmap.mmap(processor, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE, 0))
    segments = bytearray(312)
    fcntl.ioctl(processor, _GET_SREGS, segments)
    # The code segment starts at 0: base at offset 0, selector at 12.
    struct.pack_into("Q", segments, 0, 0)
    struct.pack_into("H", segments, 12, 0)
    fcntl.ioctl(processor, _SET_SREGS, bytes(segments))
    registers = [0] * 16 + [_CODE_ADDRESS, 2]
    fcntl.ioctl(processor, _SET_REGS, struct.pack("18Q", *registers))
    fcntl.ioctl(processor, _RUN, 0)
    reason = struct.unpack_from("I", shared, 8)[0]
    if reason == _EXIT_INTERNAL_ERROR:
        raise OSError(
            f"{DEVICE} opens, but a guest's kernel-mode code ended in an internal error: not every instruction is supported"
        )
    if reason != _EXIT_HLT:
        raise OSError(f"{DEVICE} opens, but a guest's kernel-mode code ended with exit reason {reason}")
    return "a guest's kernel-mode code ran natively"


if __name__ == "__main__":
    try:
        print(run_guest())
    except OSError as error:
        print(error.args[0] if len(error.args) == 1 else error)
        sys.exit(1)
