"""`npm install` in a sandbox, against plain `runsc` and the bare machine on the same root: `io.npm`.

The registry is inside each: no network but loopback, so that what is measured is the file system and the processor.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile

from bench.files import _archive, _chunks
from bench.measure import Result, Series, at_most
from bench.raw import Raw, raw_runsc
from bench.sdk import Sdk
from bench.server import serving

PACKAGES, FILES, FILE_BYTES = 150, 30, 2_000
PORT = 4873
REGISTRY = f"http://127.0.0.1:{PORT}/"
AREA = "/vercel/npm"
INSTALL = (
    f"cd {AREA} && (python3 -m http.server {PORT} --bind 127.0.0.1 --directory registry >/dev/null 2>&1 & echo $! > pid) && "
    "until python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", %d))' 2>/dev/null; do sleep 0.05; done && "
    "rm -rf node_modules cache && start=$(date +%%s%%N) && "
    "npm ci --silent --no-audit --no-fund --cache cache --registry=%s && end=$(date +%%s%%N); kill $(cat pid); "
    "test -d node_modules/p0 && echo $(( (end - start) / 1000 ))"
) % (PORT, REGISTRY)


def _project() -> dict[str, bytes]:
    """A registry of generated packages, and a project with a lock file that needs all of them."""
    files: dict[str, bytes] = {}
    packages: dict[str, object] = {}
    for number in range(PACKAGES):
        name = f"p{number}"
        tarball = _package(name)
        files[f"registry/{name}-1.0.0.tgz"] = tarball
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(tarball).digest()).decode()
        packages[f"node_modules/{name}"] = {"version": "1.0.0", "resolved": f"{REGISTRY}{name}-1.0.0.tgz", "integrity": integrity}
    wanted = {f"p{number}": "1.0.0" for number in range(PACKAGES)}
    project = {"name": "bench", "version": "1.0.0", "dependencies": wanted}
    lock = {"name": "bench", "version": "1.0.0", "lockfileVersion": 3, "packages": {"": project, **packages}}
    return files | {"package.json": json.dumps(project).encode(), "package-lock.json": json.dumps(lock).encode()}


def _package(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        contents = {
            f"lib/{number}.js": hashlib.shake_128(f"{name}{number}".encode()).hexdigest(FILE_BYTES // 2)
            for number in range(FILES)
        }
        contents["package.json"] = json.dumps({"name": name, "version": "1.0.0"})
        for path, text in contents.items():
            entry = tarfile.TarInfo(f"package/{path}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


async def io_npm(quick: bool) -> list[Result]:
    """`npm ci` of a fixed lock file from a registry on loopback."""
    rounds = 1 if quick else 3
    project = _project()
    ours = []
    with serving() as server:
        sdk = Sdk(server.where)
        for _ in range(rounds):
            sandbox = await sdk.create()
            await sdk.put(sandbox, _chunks(_archive({f"npm/{path}": content for path, content in project.items()})), "/vercel")
            code, printed = await sdk.run(sandbox, ["sh", "-c", INSTALL])
            assert code == 0, printed
            ours.append(int(printed.split()[-1]) / 1000)
            await sdk.delete(sandbox)
        await sdk.close()
    with raw_runsc() as raw:
        peers = [_raw(raw, project) for _ in range(rounds)]
        bare = [_bare(raw, project) for _ in range(rounds)]
    mine, peer = Series.of(ours), Series.of(peers)
    targets = [at_most("× of raw runsc", mine.p50 / peer.p50, 1.2)]
    facts = {"bare_host_p50_ms": Series.of(bare).p50}
    what = f"`npm ci` of {PACKAGES} packages with {FILES + 1} files each"
    return [Result("io.npm", what, mine, peer, "the same in plain runsc on the same root", targets, facts)]


def _laid_out(raw: Raw, project: dict[str, bytes]) -> str:
    name = raw.prepare(["/bin/sh", "-c", INSTALL])
    raw.mount(name)
    for path, content in project.items():
        file = raw.root(name) / AREA.strip("/") / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return name


def _raw(raw: Raw, project: dict[str, bytes]) -> float:
    name = _laid_out(raw, project)
    command = raw.command("run", "-bundle", str(raw.scratch / name), name)
    done = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    raw.remove(name)
    return int(done.stdout.split()[-1]) / 1000


def _bare(raw: Raw, project: dict[str, bytes]) -> float:
    """The same programs from the same root on the machine itself, in a network of their own."""
    name = _laid_out(raw, project)
    root = raw.root(name)
    inside = [
        "chroot",
        str(root),
        "/usr/bin/env",
        "-i",
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "HOME=/root",
        "/bin/sh",
        "-c",
        INSTALL,
    ]
    setup = f'ip link set lo up; mount -t proc proc {root}/proc; mount --bind /dev {root}/dev; exec "$@"'
    done = subprocess.run(
        ["unshare", "-n", "-m", "-p", "--fork", "sh", "-c", setup, "sh", *inside],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    raw.remove(name)
    return int(done.stdout.split()[-1]) / 1000
