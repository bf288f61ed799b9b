"""gVisor: every sandbox gets a user-space kernel (the *sentry*) that answers its system calls.

The root file system is a host overlay: EROFS images below, mounted once per machine and shared by all sandboxes, and the
sandbox's writable layer on top. What a guest writes is on the host at once, so it survives the sentry.

`runsc` is only asked to start and to clean up. Whether a sandbox lives is told by its sentry's process, never by
`runsc state`, which still says `running` after the sentry's death.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
import uuid
from pathlib import Path

from hutch.host import kernel
from hutch.host.cgroups import Cgroups
from hutch.host.kernel import Process
from hutch.host.names import Names, machine_id
from hutch.isolation import bundle, processor
from hutch.isolation.mount_points import make_mount_point
from hutch.isolation.protocol import BootFailed, MachinePlan, Traits
from hutch.wire.sockets import MAX_ADDRESS_BYTES

PLATFORM = "systrap"
BOOT_TIMEOUT_S = 60.0
DEATH_TIMEOUT_S = 10.0
CHECKPOINT_TIMEOUT_S = 120.0
RESUME_TRIES = 150
RESUME_PAUSE_S = 0.1
MAX_ROOT_BYTES = MAX_ADDRESS_BYTES - len(f"/runsc-{machine_id()}.sock")
LINKS = Path("/run")
_OF_MACHINE = re.compile(r"(?:runsc-)?(m[0-9a-f]{20})(?![0-9a-f]).*")


class Gvisor:
    """The `runsc` backend. `directory` holds its state and the mounts of shared images; root only."""

    name = "gvisor"
    traits = Traits()

    def __init__(self, runsc: Path, directory: Path, cgroups: Cgroups) -> None:
        self.runsc = runsc
        self.cgroups = cgroups
        self._state = directory / "runsc"
        self._link = LINKS / f"hutch-{Names.of(directory).tag}-runsc"
        self._images = directory / "images"
        self._image_lock = threading.Lock()

    def probe(self) -> None:
        """Run one program in a sandbox without network and cgroup."""
        self._state.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe_state = self._state.parent / "probe"
        # What a predecessor left that was killed while it probed.
        self._clear(probe_state)
        probe_state.mkdir(mode=0o700)
        command = [str(self.runsc), f"--root={probe_state}", f"--platform={PLATFORM}", "--network=none", "--ignore-cgroups", "do"]
        try:
            # `runsc do` keeps its bundle in the temporary directory.
            environment = {"TMPDIR": str(probe_state)}
            printed = kernel.run([*command, "/bin/echo", "hutch-probe"], timeout_s=BOOT_TIMEOUT_S, environment=environment)
        finally:
            self._clear(probe_state)
        if "hutch-probe" not in printed:
            raise OSError(f"a program in a gVisor sandbox printed {printed!r} instead of its line")

    @staticmethod
    def _clear(directory: Path) -> None:
        for point in kernel.mounts_below(directory):
            kernel.unmount(point)
        shutil.rmtree(directory, ignore_errors=True)

    # -- boot --------------------------------------------------------------------------------------

    def boot(self, plan: MachinePlan) -> Process:
        lowers = [self._mounted(image) for image in plan.lowers]
        root = plan.directory / "root"
        root.mkdir(mode=0o755)
        contents = {
            bundle.RESOLVER: f"nameserver {plan.nameserver}\noptions timeout:2 attempts:2\n",
            bundle.HOSTS: "127.0.0.1 localhost\n127.0.1.1 sandbox\n",
            # gVisor's own is part of saved memory, and would be the same in all that go on from it.
            bundle.BOOT_ID: f"{uuid.uuid4()}\n",
        }
        files = {place: plan.directory / Path(place).name for place in contents}
        for place, file in files.items():
            file.write_text(contents[place])
            file.chmod(0o644)
        # The mount point of the agent's own bind mount inside the channel's directory.
        (plan.channel_dir / "agent").touch()
        try:
            _mount_overlay(root, lowers, plan.layer)
            for mount in plan.mounts:
                make_mount_point(root, mount.path)
            (plan.directory / "config.json").write_text(json.dumps(bundle.config(plan, root, files)))
            self._run(plan)
            return kernel.process(int((plan.directory / "pid").read_text()))
        except (OSError, ValueError) as error:
            raise BootFailed(f"The gVisor sandbox did not start: {error}{self._last_words(plan.directory)}") from error

    def _run(self, plan: MachinePlan) -> None:
        command = [
            *self._command(),
            "--network=sandbox",
            "--overlay2=none",
            "--allow-suid",
            "--host-uds=open",
            f"--panic-log={plan.directory / 'panic.log'}",
            f"--log={plan.directory / 'runsc.log'}",
            *(
                ["run"]
                if plan.memory is None
                else ["restore", "-background", *_direct(plan.memory), f"-image-path={plan.memory}"]
            ),
            "-detach",
            f"-bundle={plan.directory}",
            f"-pid-file={plan.directory / 'pid'}",
            plan.machine_id,
        ]
        with (plan.directory / "runsc.out").open("wb") as output:
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=kernel.command_environment(),
                    timeout=BOOT_TIMEOUT_S,
                    check=False,
                    # Out of the server's session: a terminal's Ctrl-C must not reach sandboxes.
                    start_new_session=True,
                )
            except subprocess.TimeoutExpired as error:
                raise OSError(f"runsc did not end within {BOOT_TIMEOUT_S:g} s") from error
        if done.returncode != 0:
            raise OSError(f"runsc ended with {done.returncode}")

    @staticmethod
    def _last_words(directory: Path) -> str:
        words = []
        for name in ("runsc.out", "runsc.log", "panic.log"):
            with contextlib.suppress(OSError):
                if text := (directory / name).read_text(errors="replace").strip():
                    words.append(text[-800:])
        return "; it printed: " + " | ".join(words) if words else ""

    def _command(self) -> list[str]:
        return [str(self.runsc), f"--root={self._root()}", f"--platform={PLATFORM}"]

    def _root(self) -> Path:
        """The state's directory as `runsc` is to know it. A sandbox's socket whose path were too long there `runsc` would put
        elsewhere, and nobody would remove it."""
        if len(os.fsencode(self._state)) <= MAX_ROOT_BYTES:
            return self._state
        with contextlib.suppress(FileExistsError):
            self._link.symlink_to(self._state)
        return self._link

    def _mounted(self, image: Path) -> Path:
        """Where an EROFS image is mounted; it is, once, for all sandboxes."""
        with self._image_lock:
            point = self._images / image.stem
            point.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not kernel.is_mounted(point):
                kernel.run(["mount", "-t", "erofs", "-o", "loop,ro,nodev", str(image), str(point)])
            return point

    # -- memory ------------------------------------------------------------------------------------

    def suspend(self, machine_id: str) -> None:
        kernel.run([*self._command(), "pause", machine_id])

    def resume(self, machine_id: str) -> None:
        for _ in range(RESUME_TRIES):
            state = json.loads(kernel.run([*self._command(), "state", machine_id]))
            if state["status"] != "paused":
                return
            # Refused while a checkpoint that a dead host began is still being written.
            with contextlib.suppress(OSError):
                kernel.run([*self._command(), "resume", machine_id])
                return
            time.sleep(RESUME_PAUSE_S)
        raise OSError(f"{machine_id} does not go on")

    def before_checkpoint(self, machine_id: str, image: Path) -> None:
        """Nothing is written before."""

    def checkpoint(self, machine_id: str, image: Path) -> None:
        options = ["-leave-running", "-exclude-committed-zero-pages", *_direct(image), f"-image-path={image}"]
        kernel.run([*self._command(), "checkpoint", *options, machine_id], timeout_s=CHECKPOINT_TIMEOUT_S)

    def fingerprint(self) -> str:
        found = hashlib.sha256(processor.digest(self.runsc))
        found.update(processor.model())
        return found.hexdigest()

    # -- end ---------------------------------------------------------------------------------------

    def last_words(self, directory: Path) -> str:
        # What the sentry printed is in files for the operator.
        return ""

    def kill(self, process: Process) -> None:
        process.kill()
        process.wait_gone(DEATH_TIMEOUT_S)

    def remove(self, machine_id: str, directory: Path, process: Process | None) -> None:
        if process is not None:
            self.kill(process)
        # `runsc delete` would do the same at the cost of a tenth of a boot: what it kills dies with the cgroup, which is
        # the host's to empty and remove, and what else it removes are these files.
        for name in self._state_files():
            if _machine_of(name) == machine_id:
                (self._state / name).unlink(missing_ok=True)
        kernel.unmount(directory / "root")

    def machines(self) -> set[str]:
        return {machine for name in self._state_files() if (machine := _machine_of(name)) is not None}

    def _state_files(self) -> list[str]:
        return [entry.name for entry in self._state.iterdir()] if self._state.is_dir() else []

    def forget_image(self, image: Path) -> None:
        with self._image_lock:
            point = self._images / image.stem
            kernel.unmount(point)
            with contextlib.suppress(FileNotFoundError):
                point.rmdir()

    def leave(self) -> None:
        """Nothing is held that a successor does not use."""

    def close(self) -> None:
        # runsc keeps an empty network namespace mounted here, shared by all sandboxes.
        for point in kernel.mounts_below(self._state.parent):
            kernel.unmount(point)
        shutil.rmtree(self._state, ignore_errors=True)
        self._link.unlink(missing_ok=True)
        if self._images.is_dir():
            for entry in self._images.iterdir():
                entry.rmdir()


def _machine_of(name: str) -> str | None:
    """Whose a file of `runsc`'s state is: `ID_sandbox:ID.state` and `.lock`, and `runsc-ID.sock`."""
    found = _OF_MACHINE.fullmatch(name)
    return found.group(1) if found is not None else None


def _mount_overlay(root: Path, lowers: list[Path], layer: Path) -> None:
    with contextlib.ExitStack() as stack:

        def short(directory: Path) -> str:
            # All options have to fit into a page, and no path's own characters may mean anything in them.
            descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            return f"/proc/self/fd/{descriptor}"

        lower = ":".join(short(directory) for directory in reversed(lowers))
        layers = f"lowerdir={lower},upperdir={short(layer / 'u')},workdir={short(layer / 'w')}"
        # A layer's files are whole, and it may lie over other images' mounts than it was made over.
        kernel.mount("overlay", root, "overlay", kernel.MS_NODEV, f"{layers},index=off,metacopy=off,redirect_dir=off")


def _direct(directory: Path) -> list[str]:
    """The option that spares the page cache, where files in `directory` can be opened so."""
    probe = directory / "probe"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_DIRECT | os.O_CLOEXEC, 0o600))
    except OSError:
        return []
    finally:
        probe.unlink(missing_ok=True)
    return ["-direct"]
