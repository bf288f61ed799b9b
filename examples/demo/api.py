"""An API for the demo, in a network of its own, as if it were somebody else's server on the Internet.

    api.py SCRATCH        makes the network, answers names and serves until SIGTERM, then takes everything away

SCRATCH/ca.pem is the authority that vouches for the API; SCRATCH/dns has the address of a name server that knows it and asks the
machine's own about everything else. The addresses are those of documentation (RFC 5737): nobody's.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NAME = "api.demo.test"
OUTSIDE, INSIDE = "198.51.100.253", "198.51.100.254"
KEY = os.environ.get("DEMO_API_KEY", "")


class Api(BaseHTTPRequestHandler):
    """`/v1/orders` for whoever has the key; `/debug`, which careless servers have, shows the request's own headers."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        known = self.headers.get("authorization") == f"Bearer {KEY}"
        if self.path == "/debug":
            self.answer(200, {"headers": dict(self.headers)})
        elif self.path == "/v1/orders":
            self.answer(200 if known else 401, {"orders": 3} if known else {"error": "no key"})
        else:
            self.answer(404, {"error": "no such thing"})

    def answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nobody reads it."""


def certificates(scratch: Path) -> None:
    """An authority and the API's certificate."""
    now = datetime.datetime.now(datetime.UTC)

    def make(
        name: str, signer: tuple[ec.EllipticCurvePrivateKey, x509.Name] | None
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        title = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder().subject_name(title).issuer_name(signer[1] if signer else title)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        if signer:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        return key, builder.sign(signer[0] if signer else key, hashes.SHA256())

    root_key, root = make("Demo authority", None)
    key, leaf = make(NAME, (root_key, root.subject))
    (scratch / "ca.pem").write_bytes(root.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (scratch / "api.pem").write_bytes(private + leaf.public_bytes(serialization.Encoding.PEM))


class ApiServer(ThreadingHTTPServer):
    """A server that doesn't ask for its own name, which nobody in its network knows."""

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = NAME, self.server_address[1]


def serve(scratch: Path) -> None:
    """The API itself; runs inside its network."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(scratch / "api.pem")
    server = ApiServer((INSIDE, 443), Api)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    print("ready", flush=True)
    server.serve_forever()


def name_server() -> str:
    """Answer questions for ever, in a thread; `ADDRESS:PORT`."""
    resolver = next(
        line.split()[1] for line in Path("/etc/resolv.conf").read_text().splitlines() if line.startswith("nameserver")
    )
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            question, client = listener.recvfrom(4096)
            if b"\3api\4demo\4test\0\0\1" in question.lower():
                record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(INSIDE)
                listener.sendto(question[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question[12:] + record, client)
                continue
            family = socket.AF_INET6 if ":" in resolver else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as upstream, contextlib.suppress(OSError):
                upstream.settimeout(5)
                upstream.sendto(question, (resolver, 53))
                listener.sendto(upstream.recv(4096), client)

    threading.Thread(target=answer, daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


def main() -> None:
    scratch = Path(sys.argv[1])
    if len(sys.argv) > 2:
        serve(scratch)
    certificates(scratch)
    network, link = f"hutchdemo{os.getpid()}", f"hd{os.getpid()}"

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    ip("netns", "add", network)
    try:
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", network)
        ip("addr", "add", f"{OUTSIDE}/30", "dev", link)
        ip("link", "set", link, "up")
        ip("-n", network, "addr", "add", f"{INSIDE}/30", "dev", "eth0")
        ip("-n", network, "link", "set", "eth0", "up")
        ip("-n", network, "route", "add", "default", "via", OUTSIDE)
        server = subprocess.Popen(
            ["ip", "netns", "exec", network, sys.executable, __file__, str(scratch), "serve"], stdout=subprocess.PIPE
        )
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n", "the API did not start"
        # Written last and whole: whoever waits for it may go on.
        (scratch / "dns.part").write_text(name_server())
        (scratch / "dns.part").rename(scratch / "dns")
        stopped.wait()
        server.terminate()
        server.wait()
    finally:
        # The link goes with the network that has its other end.
        ip("netns", "del", network)


if __name__ == "__main__":
    main()
