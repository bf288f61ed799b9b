"""The firewall's tests: a real gateway between real networks of sandboxes and a world of their own.

    guests (network namespaces, made as a host makes them) ─▶ nft, TPROXY ─▶ hutch-net ─▶ origins (one more namespace)

Nothing leaves the machine: names are answered by a recording name server, origins live on documentation addresses and are
vouched for by an authority that only the gateway is told of. A guest here is a namespace without a kernel of its own: its
programs may be as nasty as root with raw sockets, which a sandbox's are not. `sandboxes.py` has the same world with gVisor.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import errno
import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hutch.host import authority, kernel
from hutch.host.audit import AuditStore
from hutch.host.authority import Authority, TrustStore
from hutch.host.binaries import gateway_path
from hutch.host.gateway import Applied, AuditEvent, Counted, Gateway
from hutch.host.names import NAMESPACE_DIR, Names
from hutch.host.network import Network, Networks
from hutch.settings import Settings, load
from tests.egress.dns_wire import Reply, read_reply
from tests.egress.packets import Link, socket_in

CANARY = "CANARY-7f3a9c51d2e84b60a1f7c3d9e5b80246"
"""The secret of every test: wherever else than at the origin it turns up, something is broken."""
NAME_SERVER = "198.51.100.53"
SHARED = "198.51.100.7"
"""One address for many names, so that fronting would be possible."""
API = "198.51.100.8"
"""`api.test` has this one for itself."""
EVIL = "198.51.100.66"
METADATA = ("169.254.169.254", "10.9.9.9", "100.100.100.200", "169.254.170.2", "168.63.129.16", "192.0.0.192")
"""Addresses that no policy opens, all with listeners: metadata services of clouds, and a private one."""
NAMES = ("api.test", "cdn.test", "other.test", "evil.test", "a.wild.test", "b.a.wild.test")
OLD_PORT = 8444
"""Speaks TLS 1.1 and nothing newer."""
MUTUAL_PORT = 8445
"""Wants a certificate of its clients."""
RAW_PORTS = (22, 25, 80, 443, 853, 5432, 8080)
TIMEOUT_S = 20.0
DEADLINE_S = 10.0


def issue(directory: Path) -> Path:
    """An authority and certificates for the origins below `directory`; the authority's own is `ca.pem`."""
    directory.mkdir()
    root_key, root = _certificate("Test root", None, None, names=())
    (directory / "ca.pem").write_bytes(root.public_bytes(serialization.Encoding.PEM))
    for name in NAMES:
        _write(directory / f"{name}.pem", *_certificate(name, root_key, root, names=(name,)))
    _write(directory / "default.pem", *_certificate("default.test", root_key, root, names=("default.test",)))
    stranger_key, stranger = _certificate("Another root", None, None, names=())
    _write(
        directory / "selfsigned.test.pem", *_certificate("selfsigned.test", stranger_key, stranger, names=("selfsigned.test",))
    )
    _write(directory / "wrongname.test.pem", *_certificate("x", root_key, root, names=("somebody.else.test",)))
    _write(directory / "expired.test.pem", *_certificate("x", root_key, root, names=("expired.test",), days=(-20, -10)))
    return directory / "ca.pem"


def _certificate(
    subject: str,
    signer_key: ec.EllipticCurvePrivateKey | None,
    signer: x509.Certificate | None,
    *,
    names: tuple[str, ...],
    days: tuple[int, int] = (-1, 30),
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    title = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(title)
        .issuer_name(signer.subject if signer else title)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key((signer_key or key).public_key()), critical=False)
    )
    if signer is None:
        # Strict verifiers (Python 3.13) take no authority without it.
        usage = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"), False)
        usage |= dict.fromkeys(("key_agreement", "encipher_only", "decipher_only"), False)
        builder = builder.add_extension(x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True), critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
    return key, builder.sign(signer_key or key, hashes.SHA256())


def _write(path: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )


class Origins:
    """The process in the outer namespace, and what it is told and saw."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = issue(directory / "certificates")
        self.namespace = f"origins-{os.getpid()}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        kernel.share_mounts(NAMESPACE_DIR)
        kernel.make_network_namespace(NAMESPACE_DIR / self.namespace)
        link = f"o{os.getpid() % 10_000_000}"
        self.link = link
        inner = [NAME_SERVER, SHARED, API, EVIL, *METADATA]
        commands = [f"link add {link} type veth peer name eth0 netns {self.namespace}", f"addr add 198.51.100.1/24 dev {link}"]
        commands += [f"link set {link} up", *(f"route add {address}/32 via 198.51.100.2 dev {link}" for address in METADATA)]
        kernel.run(["ip", "-batch", "-"], stdin="\n".join(commands) + "\n")
        inside = ["link set lo up", "addr add 198.51.100.2/24 dev eth0", "link set eth0 up"]
        inside += [f"addr add {address}/32 dev eth0" for address in inner] + ["route add default via 198.51.100.1"]
        kernel.run(["ip", "-n", self.namespace, "-batch", "-"], stdin="\n".join(inside) + "\n")
        plan = {
            "certificates": str(self.directory / "certificates"),
            "dns": NAME_SERVER,
            "tls": [
                *[[SHARED, 443], [API, 443], [EVIL, 443], [SHARED, 8443]],
                *[[SHARED, OLD_PORT, "old"], [SHARED, MUTUAL_PORT, "mutual"]],
            ],
            "tcp": [[address, port] for address in (EVIL, *METADATA) for port in RAW_PORTS if (address, port) != (EVIL, 443)]
            + [[address, port] for address in (SHARED, API) for port in (22, 80, 5432)],
            "udp": [[address, port] for address in (EVIL, SHARED, *METADATA) for port in (123, 443, 5353)],
        }
        self._process = subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                self.namespace,
                sys.executable,
                str(Path(__file__).with_name("origins.py")),
                json.dumps(plan),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert json.loads(self._process.stdout.readline()) == {"ready": True}

    def stop(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(TIMEOUT_S)
            assert self._process.stdout is not None
            self._process.stdout.close()
        kernel.run(["ip", "link", "del", self.link])
        kernel.unmount(NAMESPACE_DIR / self.namespace)
        (NAMESPACE_DIR / self.namespace).unlink()

    def _order(self, **order: Any) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def reset(self) -> None:
        """Forget everything; every name of `NAMES` has its usual address."""
        self._order(do="reset")
        for name in (*NAMES, "selfsigned.test", "wrongname.test", "expired.test"):
            self.answer(name, API if name == "api.test" else EVIL if name == "evil.test" else SHARED)

    def answer(self, name: str, *addresses: str, ttl: int = 60) -> None:
        """Addresses of a name."""
        self.zone(name, [{"records": [["A", address, ttl] for address in addresses]}])

    def zone(self, name: str, steps: list[dict[str, Any]]) -> None:
        """Answers about a name, one after the other; the last one stays."""
        self._order(do="answer", name=name, steps=steps)

    def script(self, host: str, *replies: bytes, **how: Any) -> None:
        """What the origin `host` (a server name, or `ADDRESS:PORT`) answers. `%HEAD%` in a reply becomes the request's head."""
        how |= {key: base64.b64encode(value).decode() for key, value in how.items() if isinstance(value, bytes)}
        given = {"replies": [base64.b64encode(reply).decode() for reply in replies]} if replies else {}
        self._order(do="script", host=host, **given, **how)

    def wire(self) -> Link:
        """Everything that comes in from outside, before any listener sees it."""
        return Link(NAMESPACE_DIR / self.namespace)

    def release(self) -> None:
        """Let origins send what their scripts hold back."""
        self._order(do="release")

    def seen(self) -> Seen:
        return Seen(self._order(do="seen"))

    async def wait(self, condition: Callable[[Seen], bool], what: str) -> Seen:
        """Ask until it has seen something. Fails with `what`."""
        end = time.monotonic() + DEADLINE_S
        while True:
            seen = self.seen()
            if condition(seen):
                return seen
            assert time.monotonic() < end, f"{what}: {seen}"
            await asyncio.sleep(0.02)


@dataclass(slots=True)
class Seen:
    """What the world saw."""

    raw: dict[str, Any]

    @property
    def questions(self) -> list[str]:
        """Names that were asked for, in lower case."""
        return [asked["name"].lower() for asked in self.raw["dns"]]

    @property
    def connections(self) -> list[dict[str, Any]]:
        return [connection | {"data": base64.b64decode(connection["data"])} for connection in self.raw["tcp"]]

    @property
    def datagrams(self) -> list[dict[str, Any]]:
        return [datagram | {"data": base64.b64decode(datagram["data"])} for datagram in self.raw["udp"]]

    @property
    def data(self) -> bytes:
        """Every byte that any origin got, after TLS."""
        return b"".join(connection["data"] for connection in self.connections)

    def to(self, name_or_address: str) -> list[dict[str, Any]]:
        """Connections by server name or by local address."""
        return [
            connection
            for connection in self.connections
            if name_or_address in (connection["name"], connection["local"], connection["local"].partition(":")[0])
        ]

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Requests to origins that note them (`whole`, `h2`), in the order in which they came."""
        noted = [request for connection in self.connections for request in connection["requests"]]
        return sorted(noted, key=lambda request: int(request["number"]))

    @property
    def is_silent(self) -> bool:
        """Whether nothing at all arrived."""
        return not self.raw["tcp"] and not self.raw["udp"]


@dataclass(slots=True)
class Ran:
    """A program in a guest's network, and how it ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


@dataclass(slots=True)
class Outcome:
    """What became of a connection or a datagram: `data`, `closed`, `timeout`, or the name of an error."""

    end: str
    data: bytes
    took_s: float


async def _outcome(exchange: Awaitable[bytes], wait_s: float) -> Outcome:
    began = time.monotonic()
    data = b""
    try:
        async with asyncio.timeout(wait_s):
            data = await exchange
        end = "data" if data else "closed"
    except TimeoutError:
        end = "timeout"
    except OSError as error:
        end = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return Outcome(end, data, time.monotonic() - began)


@dataclass(slots=True)
class Guest:
    """A sandbox's network with its policy, and no kernel of its own."""

    world: World
    network: Network
    sandbox_id: str
    directory: Path
    authority: Authority | None = None
    told: dict[str, Any] = field(default_factory=dict)
    generation: int = 0
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)
    programs: list[asyncio.subprocess.Process] = field(default_factory=list)

    @property
    def bundle(self) -> Path:
        return self.directory / "bundle.pem"

    async def policy(
        self,
        policy: Any,
        *,
        credentials: dict[str, str] | None = None,
        placeholders: list[dict[str, str]] | None = None,
        **more: Any,
    ) -> Applied:
        """Put a policy (what JSON means) in place; it is enforced when this returns."""
        self.generation += 1
        message = {
            "sandbox_id": self.sandbox_id,
            "sandbox_name": self.sandbox_id,
            "team_id": "team_test",
            "project_id": "prj_test",
            "lifecycle": f"session_{self.sandbox_id}",
            "generation": self.generation,
            "policy": None if policy is None else json.dumps(policy),
            "bounds": [],
            "credentials": credentials or {},
            "placeholders": placeholders or [],
            **more,
        }
        applied = await self.world.gateway.set_policy(self.network, message)
        self.told = message
        return applied

    async def start_again(self, lifecycle: str, policy: Any) -> None:
        """End its session and begin another one of the same sandbox at once."""
        assert self.authority is not None
        await self.world.gateway.remove(self.network)
        await self.world.gateway.add(self.network, self.authority)
        await self.policy(policy, lifecycle=lifecycle)

    def socket(self, kind: int, protocol: int = 0, family: int = socket.AF_INET) -> socket.socket:
        """A socket in the guest's network, for this test's own loop."""
        made = socket_in(self.network.namespace_path, family, kind, protocol)
        made.setblocking(False)
        return made

    def wire(self) -> Link:
        """The guest's interface, frame by frame."""
        return Link(self.network.namespace_path)

    @property
    def gateway_hardware(self) -> bytes:
        """The hardware address of the host's end of the link."""
        (shown,) = json.loads(kernel.run(["ip", "-j", "link", "show", "dev", self.network.link]))
        return bytes.fromhex(shown["address"].replace(":", ""))

    async def silence(self) -> None:
        """Its kernel says nothing of TCP by itself any more: only what a test writes on the wire goes out."""
        rules = b"table ip silent { chain out { type filter hook output priority 0; ip protocol tcp drop; }; }"
        ran = await self.run("nft", "-f", "-", stdin=rules)
        assert ran.code == 0, ran

    async def connect(self, address: str, port: int, send: bytes = b"", wait_s: float = 5.0) -> Outcome:
        """What becomes of a TCP connection on which `send` is written."""
        loop = asyncio.get_running_loop()

        async def exchange() -> bytes:
            await loop.sock_connect(stream, (address, port))
            if send:
                await loop.sock_sendall(stream, send)
            return await loop.sock_recv(stream, 65536)

        with self.socket(socket.SOCK_STREAM) as stream:
            return await _outcome(exchange(), wait_s)

    async def datagram(self, address: str, port: int, data: bytes = b"x", wait_s: float = 2.0) -> Outcome:
        """What becomes of a datagram."""
        loop = asyncio.get_running_loop()

        async def exchange() -> bytes:
            await loop.sock_connect(sock, (address, port))
            await loop.sock_sendall(sock, data)
            return await loop.sock_recv(sock, 65536)

        with self.socket(socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            return await _outcome(exchange(), wait_s)

    async def ask(self, question: bytes, server: str | None = None, *, tcp: bool = False, wait_s: float = 5.0) -> Reply | None:
        """Ask a name server, the gateway's by default; `None` without an answer in time."""
        address = server or self.network.host_address
        if tcp:
            return await self._ask_tcp(address, question, wait_s)
        found = await self.datagram(address, 53, question, wait_s)
        return read_reply(found.data) if found.end == "data" else None

    async def _ask_tcp(self, address: str, question: bytes, wait_s: float) -> Reply | None:
        with self.socket(socket.SOCK_STREAM) as stream:
            try:
                async with asyncio.timeout(wait_s):
                    await asyncio.get_running_loop().sock_connect(stream, (address, 53))
                    reader, writer = await asyncio.open_connection(sock=stream)
                    with contextlib.closing(writer):
                        writer.write(len(question).to_bytes(2) + question)
                        reply = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                return None
        return read_reply(reply)

    def _command(self, *argv: str) -> list[str]:
        mount = f'mount --bind {self.directory / "resolv.conf"} /etc/resolv.conf && exec "$@"'
        return [
            "ip",
            "netns",
            "exec",
            self.network.namespace,
            "unshare",
            "-m",
            "--propagation",
            "slave",
            "sh",
            "-c",
            mount,
            "sh",
            *argv,
        ]

    async def run(self, *argv: str, stdin: bytes | None = None, timeout_s: float = TIMEOUT_S) -> Ran:
        """Run a program in the guest's network, with its resolver and its trust store."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            **dict.fromkeys(authority.VARIABLES, str(self.bundle)),
        }
        process = await asyncio.create_subprocess_exec(
            *self._command(*argv),
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        self.programs.append(process)
        try:
            async with asyncio.timeout(timeout_s):
                out, err = await process.communicate(stdin)
        finally:
            self.programs.remove(process)
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        ran = Ran(process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))
        self.printed += [ran.out, ran.err]
        return ran

    def stop(self) -> None:
        """End its programs."""
        for program in self.programs:
            program.kill()

    async def python(self, program: str, *arguments: str, stdin: bytes | None = None, timeout_s: float = TIMEOUT_S) -> Ran:
        """Run Python text; `wire` of `guest_tools.py` is imported."""
        tools, checkout = str(Path(__file__).parent), str(Path(__file__).parents[2])
        text = f"import sys; sys.path[:0] = [{tools!r}, {checkout!r}]; from guest_tools import *\n" + textwrap.dedent(program)
        return await self.run(sys.executable, "-c", text, *arguments, stdin=stdin, timeout_s=timeout_s)

    async def curl(self, *arguments: str) -> Ran:
        """curl, silent but for errors, with the status at the end of its output."""
        return await self.run("curl", "-sS", "--max-time", "15", "-w", "\n%{http_code}", *arguments)

    async def counters(self) -> Counted:
        """What the gateway counted for it."""
        return (await self.world.gateway.counters(self.network)).counted

    async def audit(self, *, least: int = 0, **wanted: Any) -> list[dict[str, Any]]:
        """Audit records whose fields have these values, in order, once there are `least`: they may come after a response."""
        end = time.monotonic() + DEADLINE_S
        while len(found := await self._audit(wanted)) < least and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return found

    async def _audit(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        records, _ = await self.world.audit.read(self.sandbox_id, 0, 100_000)
        found = [json.loads(record) for record in records]
        return [record for record in found if all(record.get(key) == value for key, value in wanted.items())]

    async def audited(self, **wanted: Any) -> dict[str, Any]:
        """The first such record, once it is there. Fails when it does not come."""
        end = time.monotonic() + DEADLINE_S
        while True:
            if found := await self.audit(**wanted):
                return found[0]
            assert time.monotonic() < end, f"no record with {wanted} in {await self.audit()}"
            await asyncio.sleep(0.02)


class World:
    """A gateway, its guests and the origins."""

    def __init__(self, directory: Path, origins: Origins, settings: Settings, networks: Networks) -> None:
        self.directory = directory
        self.origins = origins
        self.settings = settings
        self.networks = networks
        self.audit = AuditStore(directory / "audit")
        self.stores_audit = asyncio.Event()
        self.stores_audit.set()
        self.trust = TrustStore(settings.egress.extra_trust_roots)
        self.gateway = self.host()
        self.secret = os.urandom(32)
        self.guests: list[Guest] = []

    def host(self) -> Gateway:
        """What a host that starts again has of the gateway: nothing but its directory."""
        return Gateway(
            self.settings,
            self.directory / "gateway",
            self.networks,
            Path(os.environ["HUTCH_TEST_GATEWAY"]) if "HUTCH_TEST_GATEWAY" in os.environ else gateway_path(self.settings),
            self.trust,
            self._store_audit,
            self.audit.position,
        )

    async def _store_audit(self, events: Sequence[AuditEvent]) -> None:
        await self.stores_audit.wait()
        await self.audit.store(events)

    async def start_host_again(self) -> None:
        """The host goes, and another one takes its place that knows what the first one had in its journal."""
        await self.gateway.leave()
        self.gateway = self.host()
        await self.gateway.start()
        for guest in self.guests:
            assert guest.authority is not None
            await self.gateway.add(guest.network, guest.authority, announce=False)
            await self.gateway.set_policy(guest.network, guest.told, announce=False)
        await self.gateway.open()

    @property
    def gateway_pid(self) -> int:
        """The process id of the gateway that runs now."""
        return int((self.directory / "gateway" / "process").read_text().split()[0])

    @property
    def gateway_memory_kib(self) -> int:
        """What the gateway has in memory."""
        status = Path(f"/proc/{self.gateway_pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))

    def places_of(self, secret: str) -> list[str]:
        """Where on this side of the origin a secret is to be found, in whatever case: output of guests, files of host and gateway
        (its log and the audit are among them), what everybody may read of its process."""
        wanted = secret.lower().encode()
        said = {f"output of {guest.sandbox_id}": "".join(guest.printed).encode() for guest in self.guests}
        files = [path for path in self.directory.rglob("*") if path.is_file()]
        files += [Path(f"/proc/{self.gateway_pid}/{name}") for name in ("environ", "cmdline")]
        return [place for place, text in said.items() if wanted in text.lower()] + [
            str(path) for path in files if wanted in path.read_bytes().lower()
        ]

    async def guest(self, policy: Any = "deny-all", **more: Any) -> Guest:
        """A new guest with a policy."""
        network = await self.networks.take()
        number = len(self.guests)
        own = authority.derive(self.secret, f"machine-{number}")
        directory = self.directory / f"guest{number}"
        directory.mkdir()
        (directory / "resolv.conf").write_text(f"nameserver {network.host_address}\noptions timeout:2 attempts:1\n")
        (directory / "bundle.pem").write_bytes(self.trust.pem + own.certificate_pem)
        await self.gateway.add(network, own)
        guest = Guest(self, network, f"sand_{number}", directory, own)
        self.guests.append(guest)
        await guest.policy(policy, **more)
        return guest

    def spilled(self) -> list[str]:
        """Where the canary is and must not be, and where the gateway's own faults are."""
        files = [path for path in self.directory.rglob("*") if path.is_file()]
        found = [str(path) for path in files if CANARY.encode() in path.read_bytes()]
        found += [f"{path}: panic" for path in files if b"panicked at" in path.read_bytes()]
        found += [f"{guest.sandbox_id} printed it" for guest in self.guests if CANARY in "".join(guest.printed)]
        return found

    async def close(self) -> None:
        for guest in self.guests:
            await self.gateway.remove(guest.network)
            await self.networks.give_back(guest.network)
        await self.gateway.close()


@contextlib.asynccontextmanager
async def world(directory: Path, origins: Origins, **egress: Any) -> AsyncIterator[World]:
    """A gateway of its own in front of the origins."""
    flags = {
        "server.data_dir": directory / "data",
        "egress.dns_upstreams": (f"{NAME_SERVER}:53",),
        "egress.extra_trust_roots": origins.ca,
        **{f"egress.{key}": value for key, value in egress.items()},
    }
    settings = load(None, environment={}, flags=flags)
    origins.reset()
    with ThreadPoolExecutor(4) as executor:
        networks = Networks(Names.of(directory), executor, ready=2)
        await asyncio.to_thread(networks.open, None, set())
        made = World(directory, origins, settings, networks)
        try:
            await made.gateway.start()
            await made.gateway.open()
            yield made
        finally:
            await made.close()
            await asyncio.to_thread(networks.close)
