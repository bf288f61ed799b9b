"""`hutch debug`: one machine without a server, for those who work on the engine or ask why a sandbox does not start.

    hutch debug boot [--image IMAGE]      boot a machine, print its id and what took how long; it runs on
    hutch debug exec ID -- PROGRAM …      run a program in it, with this terminal's output
    hutch debug ls                        the machines that run
    hutch debug kill ID                   end it and remove everything of it
    hutch debug qemu …                    one virtual machine (`debug_qemu.py`)
    hutch debug firecracker …             one virtual machine on Firecracker (`debug_firecracker.py`)

Each call is a host of its own, with its own data directory: it adopts what the call before left, as a host does after a
crash.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hutch import ids
from hutch.errors import HutchError
from hutch.host.main import running
from hutch.host.protocol import CommandStart, SessionSpec, SessionStatus
from hutch.host.supervisor import Supervisor
from hutch.settings import Settings, load

DATA_DIR = Path("/var/lib/hutch-debug")
TIMEOUT_MS = 24 * 3600 * 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Run one call; the exit code, for `exec` the program's."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["qemu"]:
        from hutch.host import debug_qemu

        return debug_qemu.main(words[1:])
    if words[:1] == ["firecracker"]:
        from hutch.host import debug_firecracker

        return debug_firecracker.main(words[1:])
    parser = argparse.ArgumentParser(prog="hutch debug", description="Boot, use and kill one machine without a server.")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help=f"where its state is kept (default {DATA_DIR})")
    parser.add_argument("--config", type=Path, help="configuration file")
    calls = parser.add_subparsers(dest="call", required=True)
    boot = calls.add_parser("boot", help="boot a machine")
    boot.add_argument("--image", help="image to boot (default: sandbox.default_image)")
    boot.add_argument("--vcpus", type=int, default=1, help="vCPUs; 2048 MB of memory each")
    run = calls.add_parser("exec", help="run a program in a machine")
    run.add_argument("--root", action="store_true", help="as root")
    run.add_argument("id")
    run.add_argument("program", nargs=argparse.REMAINDER)
    calls.add_parser("qemu", help="drive one virtual machine; see `hutch debug qemu --help`", add_help=False)
    calls.add_parser("firecracker", help="the same on Firecracker; see `hutch debug firecracker --help`", add_help=False)
    calls.add_parser("ls", help="list the machines that run")
    kill = calls.add_parser("kill", help="end a machine")
    kill.add_argument("id")
    options = parser.parse_args(words)
    try:
        if os.geteuid() != 0:
            raise PermissionError("`hutch debug` needs root.")
        flags = {"server.data_dir": options.data_dir, "pool.size": 0}
        return asyncio.run(_call(load(options.config, flags=flags), options))
    except (HutchError, OSError) as error:
        print(f"hutch debug: {error.message if isinstance(error, HutchError) else error}", file=sys.stderr)
        return 1


async def _call(settings: Settings, options: argparse.Namespace) -> int:
    # The last machine takes everything with it.
    async with running(settings, end_all=False) as service:
        supervisor = service.supervisor
        if options.call == "boot":
            return await _boot(settings, supervisor, options)
        if options.call == "exec":
            return await _exec(supervisor, options)
        if options.call == "kill":
            session = supervisor.get(options.id)
            record = await supervisor.end(session, SessionStatus.STOPPED, "stop")
            print(json.dumps({"id": record.session_id, "active_cpu_us": record.active_cpu_us}))
            last = supervisor.live_sessions == 0
        else:
            last = False
            for record in supervisor.records():
                print(
                    json.dumps({"id": record.session_id, "status": record.status, "image": record.image, "cgroup": record.cgroup})
                )
    if last:
        async with running(settings):
            pass
    return 0


async def _boot(settings: Settings, supervisor: Supervisor, options: argparse.Namespace) -> int:
    started = time.monotonic()
    spec = SessionSpec(
        session_id=ids.session_id(),
        sandbox_name="debug",
        project_id="debug",
        image=options.image or settings.sandbox.default_image,
        vcpus=options.vcpus,
        memory_mb=2048 * options.vcpus,
        timeout_ms=TIMEOUT_MS,
    )
    record = await supervisor.create(spec)
    took_ms = round((time.monotonic() - started) * 1000)
    print(json.dumps({"id": record.session_id, "boot_ms": took_ms, "isolation": record.isolation, "cgroup": record.cgroup}))
    return 0


async def _exec(supervisor: Supervisor, options: argparse.Namespace) -> int:
    program = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not program:
        print("hutch debug: name a program to run, for example: hutch debug exec ID -- id", file=sys.stderr)
        return 2
    _, commands = supervisor.running(options.id)
    start = CommandStart(
        session_id=options.id, command_id=ids.command_id(), argv=[os.fsencode(word) for word in program], sudo=options.root
    )
    command = await commands.start(start)
    reader = command.output.reader()
    try:
        while (piece := await reader.next()) is not None:
            stream = sys.stdout if piece[0] == 1 else sys.stderr
            stream.buffer.write(piece[1])
            stream.buffer.flush()
    finally:
        reader.close()
    final = await command.finished
    return final.exit_code if final.exit_code is not None else 1


if __name__ == "__main__":
    sys.exit(main())
