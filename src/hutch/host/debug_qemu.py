"""`hutch debug qemu`: one virtual machine with nothing else, for those who work on that backend.

    hutch debug qemu boot                          boot a machine, say what took how long, end it
    hutch debug qemu exec [--layer FILE]… -- PROGRAM …   the same, and run a program in it

A machine lives as long as the call. It has no network, and its root is made of the EROFS images that are named, the lowest first;
without any it is the default image of the checkout.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from hutch.errors import HutchError
from hutch.host.binaries import guest_path
from hutch.host.cgroups import Cgroups
from hutch.images import ImageStore
from hutch.isolation.kvm import Verdict
from hutch.isolation.qemu import BINARY, Guest, Qemu
from hutch.isolation.qemu_command import MIB, Accelerator
from hutch.isolation.qemu_probe import Booted, kvm_verdict, with_machine
from hutch.settings import Settings, load
from hutch.wire.connection import Data

DEADLINE_S = 120.0


def main(argv: Sequence[str]) -> int:
    """Run one call; the exit code, for `exec` the program's."""
    parser = argparse.ArgumentParser(prog="hutch debug qemu", description="Drive one virtual machine with nothing else.")
    calls = parser.add_subparsers(dest="call", required=True)
    for name, does in (("boot", "boot a machine and end it"), ("exec", "run a program in a machine as root")):
        call = calls.add_parser(name, help=does)
        call.add_argument(
            "--accel", choices=["auto", "kvm", "tcg"], default="auto", help="auto: KVM where a machine boots with it"
        )
        call.add_argument("--binary", default=BINARY, help=f"QEMU's program (default {BINARY})")
        call.add_argument("--guest", type=Path, help="directory with the guest's kernel (default: what `make setup` made)")
        call.add_argument("--layer", type=Path, action="append", default=[], help="an EROFS image; may be repeated")
        call.add_argument("--vcpus", type=int, default=1)
        call.add_argument("--memory-mb", type=int, default=512)
        call.add_argument("--deadline", type=float, default=DEADLINE_S, help="seconds until the agent must have answered")
        if name == "exec":
            call.add_argument("program", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    try:
        if os.geteuid() != 0:
            raise PermissionError("`hutch debug qemu` needs root.")
        return _call(options)
    except (HutchError, OSError) as error:
        print(f"hutch debug: {error.message if isinstance(error, HutchError) else error}", file=sys.stderr)
        return 1


def _call(options: argparse.Namespace) -> int:
    program = _program(options)
    if program == []:
        print("hutch debug: name a program to run, for example: hutch debug qemu exec -- id", file=sys.stderr)
        return 2
    lowers = tuple(options.layer) or _default_layers(load(None))
    cgroups = Cgroups.detect()
    with tempfile.TemporaryDirectory(prefix="hutch-debug-qemu-") as state:
        guest = Guest(options.guest) if options.guest is not None else Guest(guest_path())
        qemu = Qemu(guest, Path(state), cgroups, Accelerator.TCG, options.binary)
        qemu.guest.require()
        accelerator, verdict = _accelerator(options.accel, qemu)

        async def use(booted: Booted) -> int:
            told = {
                "isolation": f"qemu ({accelerator})",
                "kvm": verdict.reason if verdict is not None else None,
                "qemu_started_ms": booted.started_ms,
                "agent_answered_ms": booted.answered_ms,
            }
            print(json.dumps(told), file=sys.stderr if program else sys.stdout)
            return await run(booted, program) if program else 0

        return asyncio.run(
            ended_by_signals(
                lambda: with_machine(
                    qemu.using(accelerator),
                    lowers,
                    use,
                    deadline_s=options.deadline,
                    memory_bytes=options.memory_mb * MIB,
                    vcpus=options.vcpus,
                    cgroup=f"/hutch-debug-qemu-{secrets.token_hex(6)}",
                )
            )
        )


async def ended_by_signals(run: Callable[[], Awaitable[int]]) -> int:
    """Run it so that SIGTERM leaves nothing, as Ctrl-C does."""
    task = asyncio.ensure_future(run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM


def _program(options: argparse.Namespace) -> list[str] | None:
    """Its words, none where one is missing; None when the call runs no program."""
    if options.call != "exec":
        return None
    words: list[str] = options.program
    return words[1:] if words[:1] == ["--"] else words


def _accelerator(wanted: str, qemu: Qemu) -> tuple[Accelerator, Verdict | None]:
    if wanted != "auto":
        return Accelerator(wanted), None
    verdict = kvm_verdict(qemu)
    return (Accelerator.KVM if verdict.usable else Accelerator.TCG), verdict


def _default_layers(settings: Settings) -> tuple[Path, ...]:
    image = ImageStore(settings.image_dir()).resolve(settings.sandbox.default_image)
    return tuple(layer.path for layer in image.layers)


async def run(booted: Booted, program: Sequence[str], *, output: bool = True) -> int:
    """Run a program as root, its output to ours; its exit code. What it takes is told on standard error."""
    began = time.monotonic()
    params = {"id": "debug", "argv": [os.fsencode(word) for word in program], "env": {}, "user": "root", "stdin": False}
    stream = booted.connection.open("command.start", params)
    # Not ended: that would detach us from the command.
    await stream.reply()
    code = 1
    while (item := await stream.next()) is not None:
        if isinstance(item, Data):
            if output:
                sink = sys.stdout if item.channel == 1 else sys.stderr
                sink.buffer.write(item.data)
                sink.buffer.flush()
        elif isinstance(ended := item.decode(dict[str, dict[str, int]]).get("exit"), dict):
            code = int(ended.get("exit_code", 1))
    print(json.dumps({"exit_code": code, "command_ms": round((time.monotonic() - began) * 1000)}), file=sys.stderr)
    return code
