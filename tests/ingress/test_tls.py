"""A server whose ingress speaks TLS: a real client, and a certificate that is renewed while connections are open."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hutch.client import AsyncClient, Server
from tests import leaks
from tests.conftest import start_server, stop_server, wait_until
from tests.ingress.conftest import LISTEN_S, PORT, PROGRAM, sole

pytestmark = [pytest.mark.sandbox, pytest.mark.root]

DOMAIN = "ports.example.test"
RENEWED_S = 20.0


def certify(certificate: Path, key: Path) -> bytes:
    """Put a new key and a certificate for all names below the domain into two files, each in one step; the certificate (DER)."""
    made = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, DOMAIN)])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(made.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(f"*.{DOMAIN}")]), critical=False)
        .sign(made, hashes.SHA256())
    )
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    for path, data in (
        (certificate, signed.public_bytes(serialization.Encoding.PEM)),
        (key, made.private_bytes(serialization.Encoding.PEM, *private)),
    ):
        beside = path.with_suffix(".new")
        beside.write_bytes(data)
        beside.replace(path)
    return signed.public_bytes(serialization.Encoding.DER)


@dataclass
class TlsServer:
    """A server, and the files of its certificate."""

    where: Server
    log: Path
    certificate: Path
    key: Path

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.where.ingress_url)
        # It has no DNS here.
        assert (parts.scheme, parts.hostname) == ("https", DOMAIN)
        assert parts.port is not None
        return "127.0.0.1", parts.port

    def context(self, *protocols: str) -> ssl.SSLContext:
        """Trusts the certificate that is there now."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.set_alpn_protocols(list(protocols or ("http/1.1",)))
        return context

    async def presented(self, name: str) -> bytes:
        """The certificate that a new connection gets."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection(*self.address, ssl=context, server_hostname=name)
        found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return found


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    base = tmp_path_factory.mktemp("tls")
    certificate, key = base / "certificate.pem", base / "key.pem"
    certify(certificate, key)
    data_dir, log = base / "data", base / "serve.log"
    data_dir.mkdir()
    before = leaks.snapshot(data_dir)
    environment = {
        "HUTCH_INGRESS__DOMAIN": DOMAIN,
        "HUTCH_INGRESS__TLS_CERTIFICATE": str(certificate),
        "HUTCH_INGRESS__TLS_KEY": str(key),
        "HUTCH_POOL__SIZE": "0",
    }
    process, where = start_server(data_dir, log, environment=environment)
    yield TlsServer(where, log, certificate, key)
    stop_server(process, log)
    assert leaks.new(before, leaks.snapshot(data_dir)) == []


class Kept:
    """One connection of HTTP/1.1, on which a test asks several times."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self.reader, self.writer, self.host = reader, writer, host

    @classmethod
    async def open(cls, server: TlsServer, name: str) -> Kept:
        reader, writer = await asyncio.open_connection(*server.address, ssl=server.context(), server_hostname=name)
        return cls(reader, writer, f"{name}:{server.address[1]}")

    def ask(self, path: str) -> None:
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())

    async def get(self, path: str) -> tuple[int, bytes]:
        self.ask(path)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        return int(head.split()[1]), await self.reader.readexactly(length)


async def listening(client: AsyncClient, http: httpx.AsyncClient) -> str:
    """A sandbox whose program listens; its name below the domain."""
    made = await client.sandboxes.create(ports=[PORT], persistent=False)
    name = f"{sole(made)}.{DOMAIN}"
    assert made.routes[0].url == f"https://{name}:{http.base_url.port}"
    start = f"cat > /tmp/program.py <<'END'\n{PROGRAM.read_text()}\nEND\nnohup python3 /tmp/program.py {PORT} > /tmp/log 2>&1 &"
    assert (await client.commands.run(made.session.id, ["sh", "-c", start]))[0] == 0
    async with asyncio.timeout(LISTEN_S):
        while (await ask(http, name)).status_code == httpx.codes.BAD_GATEWAY:
            await asyncio.sleep(0.05)
    return name


async def ask(http: httpx.AsyncClient, name: str) -> httpx.Response:
    headers = {"host": f"{name}:{http.base_url.port}"}
    return await http.get("/", headers=headers, extensions={"sni_hostname": name})


async def test_a_renewed_certificate_is_for_new_connections_and_open_ones_go_on(tls_server: TlsServer) -> None:
    base = "https://{}:{}".format(*tls_server.address)
    async with (
        AsyncClient(tls_server.where) as client,
        httpx.AsyncClient(base_url=base, verify=tls_server.context(), timeout=30, trust_env=False) as http,
    ):
        name = await listening(client, http)
        said = (await ask(http, name)).json()
        assert ["X-Forwarded-Proto", "https"] in [[key.title(), value] for key, value in said["headers"]]
        kept, streaming = await Kept.open(tls_server, name), await Kept.open(tls_server, name)
        assert (await kept.get("/before"))[0] == 200
        streaming.ask("/events")
        assert b"data: 1" in await streaming.reader.readuntil(b"data: 1\n\n")
        context = tls_server.context("h2", "http/1.1")
        _, writer = await asyncio.open_connection(*tls_server.address, ssl=context, server_hostname=name)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        writer.close()

        renewed = certify(tls_server.certificate, tls_server.key)
        async with asyncio.timeout(RENEWED_S):
            while await tls_server.presented(name) != renewed:
                await asyncio.sleep(0.1)
        fresh = await Kept.open(tls_server, name)
        assert (await fresh.get("/fresh"))[0] == 200
        status, body = await kept.get("/after")
        assert (status, json.loads(body)["path"]) == (200, "/after")
        assert (await kept.get("/go-on"))[0] == 200
        assert b"data: 2" in await streaming.reader.readuntil(b"data: 2\n\n")

        # What is none is left alone, and said.
        tls_server.certificate.write_text("not a certificate\n")
        os.utime(tls_server.certificate)
        refused = "the certificate of the ingress could not be read again"
        await asyncio.to_thread(wait_until, lambda: refused in tls_server.log.read_text(), RENEWED_S, refused)
        assert await tls_server.presented(name) == renewed
        assert (await fresh.get("/still"))[0] == 200
        for connection in (kept, streaming, fresh):
            connection.writer.close()


async def test_without_tls_nothing_is_answered(tls_server: TlsServer) -> None:
    reader, writer = await asyncio.open_connection(*tls_server.address)
    writer.write(f"GET / HTTP/1.1\r\nHost: sb-x.{DOMAIN}\r\n\r\n".encode())
    async with asyncio.timeout(20):
        try:
            answer = await reader.read()
        except ConnectionResetError:
            answer = b""
    assert b"HTTP" not in answer
    writer.close()
