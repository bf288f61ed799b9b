"""The peer: plain `runsc` on the same root file system, written without any of Hutch's host.

An overlay over the image, a minimal `config.json`, `runsc run`, `runsc exec`, `runsc delete`. No network, no agent, no cgroup
limits: everything that Hutch adds is missing, so the peer is as fast as `runsc` is.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hutch.images import ImageStore
from hutch.settings import load

_ENV = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"]
_CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]


@dataclass(slots=True)
class Raw:
    """The image mounted once; sandboxes are made from it one by one. Ids have one length: runsc resolves them by prefix."""

    runsc: Path
    scratch: Path
    lower: str
    count: int = 0

    def command(self, *arguments: str) -> list[str]:
        return [
            str(self.runsc),
            f"--root={self.scratch / 'state'}",
            "--platform=systrap",
            "--network=none",
            "--overlay2=none",
            "--allow-suid",
            "--ignore-cgroups",
            *arguments,
        ]

    def prepare(self, argv: Sequence[str]) -> str:
        """A bundle for `argv`; its id. The root is mounted by `mount`, which is part of a start."""
        self.count += 1
        name = f"raw-{self.count:016d}"
        bundle = self.scratch / name
        for part in ("u", "w", "m"):
            (bundle / part).mkdir(parents=True)
        capabilities = dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES)
        config = {
            "ociVersion": "1.0.0",
            "root": {"path": str(bundle / "m"), "readonly": False},
            "hostname": "raw",
            "process": {"args": list(argv), "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": _ENV, "capabilities": capabilities},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
        }
        (bundle / "config.json").write_text(json.dumps(config))
        return name

    def mount(self, name: str) -> None:
        bundle = self.scratch / name
        options = f"lowerdir={self.lower},upperdir={bundle / 'u'},workdir={bundle / 'w'},volatile"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(bundle / "m")], check=True)

    def root(self, name: str) -> Path:
        return self.scratch / name / "m"

    def run(self, name: str) -> None:
        """Run to the end of its program."""
        subprocess.run(
            self.command("run", "-bundle", str(self.scratch / name), name),
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )

    def start(self, name: str) -> None:
        """Start and leave running."""
        subprocess.run(
            self.command("run", "-detach", "-bundle", str(self.scratch / name), name),
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def execute(self, name: str, argv: Sequence[str]) -> None:
        subprocess.run(self.command("exec", name, *argv), check=True, stdin=subprocess.DEVNULL, capture_output=True)

    def remove(self, name: str) -> None:
        subprocess.run(self.command("delete", "-force", name), check=False, capture_output=True)
        subprocess.run(["umount", str(self.root(name))], check=False, capture_output=True)
        shutil.rmtree(self.scratch / name, ignore_errors=True)

    @contextmanager
    def sandbox(self) -> Iterator[str]:
        """A running one that does nothing."""
        name = self.prepare(["/usr/bin/sleep", "infinity"])
        self.mount(name)
        try:
            self.start(name)
            yield name
        finally:
            self.remove(name)


@contextmanager
def raw_runsc() -> Iterator[Raw]:
    """The peer, with the default image's layers mounted. Removes everything at the end."""
    settings = load()
    image = ImageStore(settings.image_dir()).resolve(settings.sandbox.default_image)
    scratch = Path(tempfile.mkdtemp(prefix="hutch-raw-"))
    mounted: list[Path] = []
    raw = None
    try:
        for number, layer in enumerate(image.layers):
            point = scratch / f"layer{number}"
            point.mkdir()
            subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", str(layer.path), str(point)], check=True)
            mounted.insert(0, point)
        raw = Raw(settings.isolation.runsc_path(), scratch, ":".join(str(point) for point in mounted))
        yield raw
    finally:
        if raw is not None:
            for bundle in scratch.glob("raw-*"):
                raw.remove(bundle.name)
        # runsc binds it once per launcher that found it missing.
        while subprocess.run(["umount", str(scratch / "state" / "null-netns")], check=False, capture_output=True).returncode == 0:
            pass
        for point in mounted:
            subprocess.run(["umount", str(point)], check=False)
        shutil.rmtree(scratch, ignore_errors=True)
