"""Sandboxes from Git repositories and archives: a real Git server behind TLS, in the tests' own network."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import json
import lzma
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from vercel.sandbox import GitSource, SandboxClient, SandboxCredentials, SandboxServiceOptions, TarballSource

from hutch.client import Server
from hutch.host import kernel
from tests import leaks
from tests.clients.conftest import JAVASCRIPT, node_tool
from tests.conftest import start_server, stop_server, wait_until
from tests.egress.git_server import PASSWORD, USER, WANTED
from tests.egress.world import NAME_SERVER, Origins, _certificate, _write

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.section("6.1")]

ADDRESS = "198.51.100.30"
GIT, ELSEWHERE, DENIED = "git.test", "elsewhere.test", "denied.test"
NAMES = (GIT, ELSEWHERE, DENIED)
SETTLE_S = 20.0
TIMEOUT_MS = 10_000
PROCESSES = {"api": b"hutch.api.main", "host": b"hutch\0host"}
LOGIN = {"username": USER, "password": PASSWORD}


def _repository(root: Path, scratch: Path) -> dict[str, str]:
    """Bare repositories, public and private: three commits, a branch, a tag, and a submodule. Names → commits."""
    work, commits = scratch / "work", {}

    def git(*words: str) -> str:
        settings = [
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t.test",
            "-c",
            "protocol.file.allow=always",
            "-c",
            "commit.gpgsign=false",
        ]
        done = subprocess.run(["git", "-C", str(work), *settings, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    work.mkdir()
    git("init", "-q", "-b", "main")
    for number in ("one", "two", "three"):
        (work / "file.txt").write_text(f"{number}\n")
        git("add", "-A")
        git("commit", "-q", "-m", number)
        commits[number] = git("rev-parse", "HEAD")
    git("branch", "side/branch", commits["two"])
    git("tag", "v1", commits["one"])
    (work / ".gitmodules").write_text(f'[submodule "sub"]\n\tpath = sub\n\turl = https://{DENIED}/sub.git\n')
    git("update-index", "--add", "--cacheinfo", f"160000,{commits['one']},sub")
    git("add", ".gitmodules")
    git("commit", "-q", "-m", "submodule")
    for place in ("open", "private"):
        target = root / "git" / place / "repo.git"
        target.parent.mkdir(parents=True)
        subprocess.run(["git", "clone", "-q", "--bare", str(work), str(target)], check=True)
        subprocess.run(["git", "-C", str(target), "config", "uploadpack.allowAnySHA1InWant", "true"], check=True)
    return commits


def _packed(*entries: tuple[tarfile.TarInfo | str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for entry, content in entries:
            info = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(entry)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def _special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.devmajor, info.devminor = kind, target, 8, 0
    return info


def _archives(root: Path) -> None:
    files = root / "files"
    (files / "private").mkdir(parents=True)
    plain = _packed(("tree/deep/a.txt", b"from an archive\n"))
    (files / "a.tar").write_bytes(plain)
    (files / "a.tar.gz").write_bytes(gzip.compress(plain))
    (files / "a.tar.xz").write_bytes(lzma.compress(plain))
    (files / "a.tar.bz2").write_bytes(bz2.compress(plain))
    (files / "private" / "a.tar.gz").write_bytes(gzip.compress(plain))
    (files / "page.html").write_bytes(b"<html>not an archive</html>")
    (files / "cut.tar.gz").write_bytes(gzip.compress(plain)[:40])
    (files / "absolute.tar").write_bytes(_packed(("/tmp/absolute", b"x")))
    (files / "up.tar").write_bytes(_packed(("../../tmp/up", b"x")))
    (files / "link.tar").write_bytes(_packed((_special("out", tarfile.SYMTYPE, "/tmp"), b""), ("out/through", b"x")))
    (files / "device.tar").write_bytes(_packed((_special("disk", tarfile.BLKTYPE), b"")))
    (files / "large.tar.gz").write_bytes(gzip.compress(_packed(("zeros", bytes(64 * 1024 * 1024)))))


@dataclass
class Hub:
    """A server whose sandboxes reach the Git server, and what that was asked."""

    where: Server
    log: Path
    commits: dict[str, str]
    origins: Origins
    server: subprocess.Popen[bytes]
    data_dir: Path

    def child(self, command: bytes) -> int:
        """The server's process with this in its command line."""
        children = Path(f"/proc/{self.server.pid}/task/{self.server.pid}/children").read_text().split()
        (found,) = [int(pid) for pid in children if command in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return found

    def machines(self) -> set[str]:
        """Directories of sandboxes that run and of those that are kept ready."""
        return {entry.name for entry in (self.data_dir / "host" / "machines").iterdir()}

    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture(scope="module")
def hub(origins: Origins, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    scratch = tmp_path_factory.mktemp("sources")
    log = scratch / "requests.jsonl"
    log.touch()
    commits = _repository(scratch, scratch)
    _archives(scratch)
    root_key, root = _certificate("Root of the sources", None, None, names=())
    _write(scratch / "server.pem", *_certificate("server", root_key, root, names=NAMES))
    roots = scratch / "roots.pem"
    roots.write_bytes(origins.ca.read_bytes() + root.public_bytes(serialization.Encoding.PEM))
    bounds = scratch / "bounds.json"
    bounds.write_text(json.dumps({"allow": {GIT: [], ELSEWHERE: []}, "subnets": {"allow": [f"{ADDRESS}/32"]}}))
    kernel.run(["ip", "-n", origins.namespace, "addr", "add", f"{ADDRESS}/32", "dev", "eth0"])
    program = [sys.executable, str(Path(__file__).with_name("git_server.py")), str(scratch), str(scratch / "server.pem")]
    process = subprocess.Popen(
        ["ip", "netns", "exec", origins.namespace, *program, str(log), ADDRESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    data_dir, server_log = scratch / "data", scratch / "serve.log"
    data_dir.mkdir()
    before = leaks.snapshot(data_dir)
    environment = {
        "HUTCH_EGRESS__DNS_UPSTREAMS": f"{NAME_SERVER}:53",
        "HUTCH_EGRESS__EXTRA_TRUST_ROOTS": str(roots),
        "HUTCH_EGRESS__POLICY": str(bounds),
        "HUTCH_SANDBOX__SOURCE_TIMEOUT_MS": str(TIMEOUT_MS),
    }
    running, where = start_server(data_dir, server_log, environment=environment)
    yield Hub(where, log, commits, origins, running, data_dir)
    stop_server(running, server_log)
    assert process.stdin is not None
    process.stdin.close()
    process.wait(20)
    process.stdout.close()
    wait_until(
        lambda: not leaks.new(before, leaks.snapshot(data_dir)),
        SETTLE_S,
        lambda: str(leaks.new(before, leaks.snapshot(data_dir))),
    )


class Boxes:
    """Sandboxes from sources, over bare HTTP."""

    def __init__(self, http: httpx.AsyncClient, hub: Hub) -> None:
        self.http = http
        self.hub = hub
        self.names: list[str] = []

    async def create(self, source: dict[str, Any], **body: Any) -> httpx.Response:
        response = await self.http.post("/v3/sandboxes", json={"source": source, "persistent": False, **body})
        if response.status_code == 200:
            self.names.append(response.json()["sandbox"]["name"])
        return response

    async def made(self, source: dict[str, Any], **body: Any) -> str:
        """The session of a new sandbox."""
        response = await self.create(source, **body)
        assert response.status_code == 200, response.text
        return str(response.json()["session"]["id"])

    async def snapshots(self) -> set[str]:
        """Ids of all of them."""
        listed = (await self.http.get("/v2/sandboxes/snapshots", params={"limit": "100"})).json()
        assert listed["pagination"]["next"] is None
        return {snapshot["id"] for snapshot in listed["snapshots"]}

    async def shell(self, session: str, script: str, **body: Any) -> str:
        start = {"command": "sh", "args": ["-c", script], "wait": True, "logs": True, **body}
        response = await self.http.post(f"/v2/sandboxes/sessions/{session}/cmd", json=start)
        records = [json.loads(line) for line in response.text.splitlines()]
        return "".join(record["data"] for record in records if "stream" in record)

    async def refused(self, source: dict[str, Any], **body: Any) -> str:
        """The message of a create that failed because of its source."""
        response = await self.create(source, **body)
        error = response.json().get("error", response.text)
        assert (response.status_code, error["code"]) == (400, "source_failed"), error
        return str(error["message"])


@pytest.fixture
async def boxes(hub: Hub) -> AsyncIterator[Boxes]:
    hub.origins.reset()
    hub.log.write_text("")
    for name in NAMES:
        hub.origins.answer(name, ADDRESS)
    headers = {"authorization": f"Bearer {hub.where.token}"}
    async with httpx.AsyncClient(base_url=f"{hub.where.url}/api", headers=headers, timeout=60) as http:
        made = Boxes(http, hub)
        yield made
        for name in made.names:
            await http.delete(f"/v2/sandboxes/{name}", params={"deleteOrphanSnapshots": "true"})
        assert (await http.get("/v2/sandboxes")).json()["sandboxes"] == []


def git(path: str = "open/repo.git", **fields: Any) -> dict[str, Any]:
    return {"type": "git", "url": f"https://{GIT}/{path}", **fields}


def tarball(path: str, **fields: Any) -> dict[str, Any]:
    return {"type": "tarball", "url": f"https://{GIT}/{path}", **fields}


async def test_a_repository_is_there_when_the_create_is_answered(boxes: Boxes) -> None:
    session = await boxes.made(git())
    assert await boxes.shell(
        session, "cat repo/file.txt; stat -c %U repo/file.txt; git -C repo log --format=%s; ls repo/sub"
    ) == ("three\nubuntu\nsubmodule\nthree\ntwo\none\n")
    assert not [request for request in boxes.hub.requests() if request["name"] == DENIED], "submodules are left alone"
    described = (await boxes.http.get(f"/v2/sandboxes/sessions/{session}")).json()["session"]
    assert described["status"] == "running"
    assert "networkPolicy" in described


@pytest.mark.parametrize(
    ("revision", "depth", "wanted"),
    [
        ("side/branch", None, "two 2"),
        ("v1", None, "one 1"),
        ("side/branch", 1, "two 1"),
        (None, 2, "three 2"),
        ("COMMIT", None, "two 2"),
        ("COMMIT", 1, "two 1"),
        ("SHORT", None, "two 2"),
    ],
)
async def test_a_revision_is_a_branch_a_tag_or_a_commit(
    boxes: Boxes, revision: str | None, depth: int | None, wanted: str
) -> None:
    commit = boxes.hub.commits["two"]
    named = {"COMMIT": commit, "SHORT": commit[:8]}.get(revision or "", revision)
    fields: dict[str, Any] = {"revision": named, "depth": depth}
    session = await boxes.made(git(**{key: value for key, value in fields.items() if value is not None}))
    assert await boxes.shell(session, "echo $(cat repo/file.txt) $(git -C repo rev-list --count HEAD)") == f"{wanted}\n"


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2", f"moved/{ELSEWHERE}/a.tar.gz"])
async def test_an_archive_is_unpacked_where_commands_start(boxes: Boxes, name: str) -> None:
    session = await boxes.made(tarball(name))
    assert await boxes.shell(session, "cat tree/deep/a.txt; stat -c %U tree/deep/a.txt; ls /tmp") == "from an archive\nubuntu\n"


async def test_a_private_repository_is_read_without_its_password_in_the_sandbox(boxes: Boxes) -> None:
    policies: list[dict[str, Any]] = [{}, {"networkPolicy": {"mode": "deny-all"}}]
    sources = [git("private/repo.git", **LOGIN), {"type": "git", "url": f"https://{USER}:{PASSWORD}@{GIT}/private/repo.git"}]
    for policy, source in zip(policies, sources, strict=True):
        session = await boxes.made(source, **policy)
        assert boxes.hub.requests()[0]["authorization"] in (WANTED, None)
        assert WANTED in {request["authorization"] for request in boxes.hub.requests()}
        assert await boxes.shell(session, "cat repo/file.txt; git -C repo remote get-url origin") == (
            f"three\nhttps://{GIT}/private/repo.git\n"
        )
        secret = WANTED.removeprefix("Basic ")
        script = (
            '{ grep -rlaE "$A" / --exclude-dir=proc --exclude-dir=sys 2> /dev/null; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline'
            " 2> /dev/null | tr '\\0' '\\n' | grep -vE '^A=|grep' | grep -E \"$A\"; } | head"
        )
        pattern = f"{PASSWORD[:-1]}[{PASSWORD[-1]}]|{secret[:-1]}[{secret[-1]}]"
        assert await boxes.shell(session, f"A='{pattern}'; " + script, sudo=True) == ""
        # The credential was for the fetch only.
        boxes.hub.log.write_text("")
        again = await boxes.shell(
            session, "git -c credential.helper= ls-remote https://git.test/private/repo.git < /dev/null 2>&1"
        )
        assert "refs/heads" not in again
        assert {request["authorization"] for request in boxes.hub.requests()} <= {None}
        if policy:
            assert boxes.hub.requests() == [], "deny-all holds from the answer on"
        commands = (await boxes.http.get(f"/v2/sandboxes/sessions/{session}/cmd")).text
        assert PASSWORD not in commands
        assert secret not in commands


async def test_a_redirect_never_takes_the_password_along(boxes: Boxes) -> None:
    message = await boxes.refused(git(f"moved/{ELSEWHERE}/private/repo.git", **LOGIN))
    assert PASSWORD not in message
    asked = boxes.hub.requests()
    assert {request["authorization"] for request in asked if request["name"] == ELSEWHERE} == {None}
    assert WANTED in {request["authorization"] for request in asked if request["name"] == GIT}
    await boxes.refused(tarball(f"moved/{ELSEWHERE}/private/a.tar.gz", **LOGIN))
    assert {request["authorization"] for request in boxes.hub.requests() if request["name"] == ELSEWHERE} == {None}
    session = await boxes.made(tarball("private/a.tar.gz", **LOGIN))
    assert await boxes.shell(session, "cat tree/deep/a.txt") == "from an archive\n"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (git("open/nothing.git"), "not found"),
        (git("private/repo.git"), "could not read Username"),
        (git("private/repo.git", username=USER, password="WRONG-PASSWORD"), "Authentication failed|could not read"),
        (git(revision="no-such-branch"), "no-such-branch"),
        (tarball("nothing.tar.gz"), "404"),
        (tarball("page.html"), "does not look like a tar archive"),
        (tarball("cut.tar.gz"), "unexpected end of file|Unexpected EOF"),
        (tarball("slow/a.tar.gz"), f"within {TIMEOUT_MS} ms"),
        ({"type": "tarball", "url": f"https://{DENIED}/a.tar.gz"}, "does not allow denied.test"),
        ({"type": "git", "url": f"https://{DENIED}/open/repo.git"}, "does not allow denied.test"),
    ],
)
async def test_what_can_not_be_fetched_makes_the_create_fail_and_leaves_nothing(
    boxes: Boxes, source: dict[str, Any], words: str
) -> None:
    message = await boxes.refused(source, name="wanted")
    assert any(word in message for word in words.split("|")), message
    assert "WRONG-PASSWORD" not in message
    session = await boxes.made(git(), name="wanted")
    assert await boxes.shell(session, "cat repo/file.txt") == "three\n"


async def test_a_sandbox_whose_time_is_over_before_its_source_is_there(boxes: Boxes) -> None:
    assert "ended before" in await boxes.refused(tarball("slow/a.tar.gz"), timeout=1000)


async def test_a_source_that_does_not_fit_is_refused(boxes: Boxes) -> None:
    message = await boxes.refused(tarball("large.tar.gz"), disk_bytes=16 * 1024 * 1024)
    assert re.search("No space left|quota exceeded|Wrote only", message), message


async def test_hostile_archives_harm_nobody(boxes: Boxes) -> None:
    session = await boxes.made(tarball("absolute.tar"))
    assert await boxes.shell(session, "cat tmp/absolute; ls /tmp") == "x"
    for name in ("up.tar", "device.tar"):
        await boxes.refused(tarball(name))
    response = await boxes.create(tarball("link.tar"))
    # Whichever way tar takes it, it is the user's own /tmp of a sandbox of its own.
    assert response.status_code in (200, 400)


async def test_a_persistent_sandbox_has_its_source_once(boxes: Boxes) -> None:
    session = await boxes.made(git(), persistent=True, name="kept")
    await boxes.shell(session, "echo changed > repo/file.txt")
    await boxes.http.post(f"/v2/sandboxes/sessions/{session}/stop")
    boxes.hub.log.write_text("")
    resumed = (await boxes.http.get("/v2/sandboxes/kept", params={"resume": "true"})).json()["session"]["id"]
    assert await boxes.shell(resumed, "cat repo/file.txt") == "changed\n"
    await boxes.http.post(f"/v2/sandboxes/sessions/{resumed}/stop")
    fork = (await boxes.http.post("/v2/sandboxes/kept/fork", json={"persistent": False})).json()
    boxes.names.append(fork["sandbox"]["name"])
    assert await boxes.shell(fork["session"]["id"], "cat repo/file.txt") == "changed\n"
    assert boxes.hub.requests() == []


@pytest.mark.parametrize("killed", ["api", "host"])
async def test_a_process_that_is_killed_while_a_source_is_fetched_leaves_no_part_of_it(boxes: Boxes, killed: str) -> None:
    before = await boxes.snapshots()
    session = await boxes.made(tarball("a.tar"), persistent=True, name="other")
    answered = asyncio.ensure_future(boxes.create(tarball("slow/a.tar.gz"), persistent=True, name="wanted"))
    while not boxes.hub.requests() or boxes.hub.requests()[-1]["path"] != "/slow/a.tar.gz":
        assert not answered.done()
        await asyncio.sleep(0.01)
    while not (seen := (await boxes.http.get("/v2/sandboxes/wanted")).json())["sandbox"]["cgroup"]:
        await asyncio.sleep(0.01)
    assert (seen["sandbox"]["status"], seen["session"]["status"]) == ("running", "pending")
    machine = Path(seen["sandbox"]["cgroup"]).name
    assert machine in boxes.hub.machines()
    os.kill(boxes.hub.child(PROCESSES[killed]), signal.SIGKILL)
    if killed == "api":
        with pytest.raises(httpx.TransportError):
            await answered
    else:
        response = await answered
        assert (response.status_code, response.json()["error"]["code"]) == (503, "peer_unreachable")
    # From the first answer on it does not exist, and its name is free.
    assert (await boxes.http.get("/v2/sandboxes/wanted", params={"resume": "true"})).status_code == 404
    gone = f"/v2/sandboxes/sessions/{seen['session']['id']}"
    assert (await boxes.http.get(gone)).status_code == 404
    while (again := await boxes.create(git(), persistent=True, name="wanted")).status_code == 503:
        await asyncio.sleep(0.05)
    assert await boxes.shell(again.json()["session"]["id"], "cat repo/file.txt") == "three\n"
    async with asyncio.timeout(SETTLE_S):
        while machine in boxes.hub.machines():
            await asyncio.sleep(0.02)
    assert (await boxes.http.post(f"{gone}/cmd", json={"command": "ls", "wait": True})).status_code == 410
    # What was there goes on, and nobody can go on from a part.
    assert await boxes.shell(session, "cat tree/deep/a.txt") == "from an archive\n"
    assert await boxes.snapshots() == before


async def test_a_create_whose_caller_gives_up_is_finished(boxes: Boxes) -> None:
    with pytest.raises(httpx.ReadTimeout):
        body = {"source": tarball("late/a.tar"), "name": "late", "persistent": False}
        await boxes.http.post("/v3/sandboxes", json=body, timeout=0.5)
    boxes.names.append("late")
    while (seen := (await boxes.http.get("/v2/sandboxes/late")).json())["session"]["status"] == "pending":
        await asyncio.sleep(0.02)
    assert seen["session"]["status"] == "running"
    assert await boxes.shell(seen["session"]["id"], "cat tree/deep/a.txt") == "from an archive\n"


async def test_a_create_that_fails_leaves_no_snapshot_of_what_there_was(boxes: Boxes) -> None:
    before = await boxes.snapshots()
    await boxes.refused(tarball("cut.tar.gz"), persistent=True)
    await boxes.refused(tarball("slow/a.tar.gz"), persistent=True, timeout=1500)
    assert await boxes.snapshots() == before


async def test_the_python_sdk_creates_from_both(boxes: Boxes) -> None:
    where = boxes.hub.where

    async def factory() -> SandboxCredentials:
        return SandboxCredentials(token=where.token, team_id=where.team_id, project_id=where.project_id)

    sdk = SandboxClient.create(options=SandboxServiceOptions(base_url=f"{where.url}/api", credentials_factory=factory))
    private = GitSource(url=f"https://{GIT}/private/repo.git", depth=1, username=USER, password=PASSWORD)
    async with sdk.create_sandbox(source=private, persistent=False) as sandbox:
        assert await sandbox.fs.read_text("repo/file.txt") == "three\n"
    async with sdk.create_sandbox(source=TarballSource(url=f"https://{GIT}/a.tar.gz"), persistent=False) as sandbox:
        assert await sandbox.fs.read_text("tree/deep/a.txt") == "from an archive\n"
    await sdk.aclose()


JAVASCRIPT_SOURCES = """
import { Sandbox } from "@vercel/sandbox";
const [repository, archive, username, password] = process.argv.slice(1);
for (const [source, path] of [
  [{ type: "git", url: repository, username, password, depth: 1 }, "repo/file.txt"],
  [{ type: "tarball", url: archive }, "tree/deep/a.txt"],
]) {
  const sandbox = await Sandbox.create({ source, persistent: false });
  console.log(String(await sandbox.readFileToBuffer({ path })).trim());
  await sandbox.delete();
}
"""


async def test_the_javascript_sdk_creates_from_both(boxes: Boxes) -> None:
    own = {key: value for key, value in os.environ.items() if not key.startswith(("HUTCH_", "VERCEL_"))}
    environment = own | {"HUTCH_URL": boxes.hub.where.url, "HUTCH_TOKEN": boxes.hub.where.token}
    command = [sys.executable, "-m", "hutch", "env", "--format", "json"]
    environment |= json.loads(subprocess.check_output(command, env=environment, text=True, timeout=60))
    urls = [f"https://{GIT}/private/repo.git", f"https://{GIT}/a.tar.gz"]
    done = subprocess.run(
        [node_tool("node"), "--input-type=module", "--eval", JAVASCRIPT_SOURCES, *urls, USER, PASSWORD],
        cwd=JAVASCRIPT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "three\nfrom an archive\n"), done.stderr
