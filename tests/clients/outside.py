"""Services that the examples' workers talk to, in a network of their own, as if they were somebody else's on the Internet.

    sandbox ─▶ gateway ─▶ https://crm.test, errors.test, issues.test, chat.test, pages.test     (this program, in a namespace)
    test    ─▶ http://203.0.113.2:8080      gives them what they know, and asks what they were asked

Each wants its own token, answers in pages, and throttles or fails when a test says so. `Outside` starts them, with a name server
that knows them and asks the machine's own about everything else. The addresses are those of documentation: nobody's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

NAMES = ("crm.test", "errors.test", "issues.test", "chat.test", "pages.test")
OUTSIDE, INSIDE = "203.0.113.1", "203.0.113.2"
CONTROL_PORT = 8080
PAGE = 2
"""What a page has: few, so that tests see several."""
RETRY_AFTER_S = 40
START_S = 20.0

Reply = tuple[int, Any]
Query = dict[str, str]


def token(name: str) -> str:
    """What the service `name` wants to see."""
    return f"token-of-{name}-5d1c70b2e9"


# -- the services ----------------------------------------------------------------------------------


def paged(items: list[dict[str, Any]], after: str | None, key: str = "next") -> Reply:
    """A page of items; `after` is what the page before had as `next`."""
    begin = int(after or 0)
    more = {key: str(begin + PAGE)} if len(items) > begin + PAGE else {}
    return 200, {"items": items[begin : begin + PAGE], **more}


def crm(knows: dict[str, Any], method: str, path: str, query: Query, body: Any, headers: Query) -> Reply:
    """`GET /companies`, `/people`, and `/people?since=N`: who changed after N, the deleted among them."""
    kind = path.strip("/")
    if method != "GET" or kind not in ("companies", "people"):
        return 404, {"error": "no such thing"}
    items = sorted(knows.get(kind, []), key=lambda item: str(item["id"]))
    if "since" in query:
        items = sorted((item for item in items if item["changed"] > int(query["since"])), key=lambda item: int(item["changed"]))
    else:
        items = [item for item in items if not item.get("deleted")]
    return paged(items, query.get("after"))


def errors(knows: dict[str, Any], method: str, path: str, query: Query, body: Any, headers: Query) -> Reply:
    """`GET /rates`: errors per minute of each service, and since when it is so."""
    if (method, path) != ("GET", "/rates"):
        return 404, {"error": "no such thing"}
    return paged(knows.get("rates", []), query.get("after"))


def issues(knows: dict[str, Any], method: str, path: str, query: Query, body: Any, headers: Query) -> Reply:
    """A tracker. An `Idempotency-Key` opens one issue, however often it is sent."""
    found = knows.setdefault("issues", [])
    if (method, path) == ("GET", "/issues"):
        wanted = [item for item in found if item["state"] == query.get("state") and query.get("label") in item["labels"]]
        return paged(wanted, query.get("after"))
    if (method, path) == ("POST", "/issues"):
        key = headers.get("idempotency-key")
        same = [item for item in found if key is not None and item["key"] == key]
        if same:
            return 200, same[0]
        number = len(found) + 1
        url = f"https://issues.test/issues/{number}"
        found.append({"number": number, "url": url, "state": "open", "comments": [], "key": key, **body})
        return 201, found[-1]
    match = re.fullmatch(r"/issues/(\d+)(/comments)?", path)
    if match is None or not 1 <= int(match[1]) <= len(found):
        return 404, {"error": "no such issue"}
    issue = found[int(match[1]) - 1]
    if (method, match[2]) == ("POST", "/comments"):
        issue["comments"].append(body["body"])
        return 201, {}
    if (method, match[2]) == ("PATCH", None):
        issue.update(body)
        return 200, issue
    return 405, {"error": method}


def chat(knows: dict[str, Any], method: str, path: str, query: Query, body: Any, headers: Query) -> Reply:
    """`GET /channels/C/threads/T/messages` and `GET /users?ids=A,B`."""
    if path == "/users":
        wanted = query.get("ids", "").split(",")
        return 200, {"items": [user for user in knows.get("users", []) if user["id"] in wanted]}
    match = re.fullmatch(r"/channels/([^/]+)/threads/([^/]+)/messages", path)
    messages = knows.get("threads", {}).get(f"{match[1]}/{match[2]}") if match else None
    return (404, {"error": "no such thread"}) if messages is None else paged(messages, query.get("after"))


def pages(knows: dict[str, Any], method: str, path: str, query: Query, body: Any, headers: Query) -> Reply:
    """`PUT /pages/NAME {"title", "markdown"}` makes a page, or replaces it."""
    if method != "PUT" or not path.startswith("/pages/"):
        return 404, {"error": "no such thing"}
    knows.setdefault("pages", {})[path.removeprefix("/pages/")] = body
    return 200, {"url": f"https://pages.test{path}"}


SERVICES = {"crm.test": crm, "errors.test": errors, "issues.test": issues, "chat.test": chat, "pages.test": pages}


class World:
    """What all services know, what they were asked, and what they answer instead of the truth."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.knows: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
        self.asked: list[dict[str, Any]] = []
        self.instead: dict[str, list[int]] = {name: [] for name in NAMES}

    def control(self, order: dict[str, Any]) -> Any:
        with self.lock:
            name = order.get("name", "")
            if order["do"] == "know":
                self.knows[name] = order["what"]
                self.instead[name] = []
            elif order["do"] == "fail":
                self.instead[name] = order["with"]
            elif order["do"] == "forget":
                self.asked = []
            return {"knows": self.knows, "asked": self.asked}

    def answer(self, name: str, method: str, path: str, headers: Query, body: bytes) -> Reply:
        parts = urlsplit(path)
        with self.lock:
            if name not in SERVICES:
                return 421, {"error": f"{name} is not here"}
            authorized = headers.get("authorization") == f"Bearer {token(name)}"
            instead = self.instead[name].pop(0) if self.instead[name] else 0
            status, reply = 401, {"error": "who are you?"}
            if authorized and instead <= 0:
                given = json.loads(body) if body else None
                status, reply = SERVICES[name](self.knows[name], method, parts.path, dict(parse_qsl(parts.query)), given, headers)
            if instead != 0:
                status, reply = abs(instead), {"error": "not now"}
            self.asked.append({"name": name, "method": method, "path": path, "authorized": authorized, "status": status})
            return status, json.loads(json.dumps(reply))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    world: World

    def answered(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        port: int = self.connection.getsockname()[1]
        if port == CONTROL_PORT:
            status, reply = 200, self.world.control(json.loads(body))
        else:
            headers = {name.lower(): value for name, value in self.headers.items()}
            name = headers.get("host", "").partition(":")[0]
            status, reply = self.world.answer(name, self.command, self.path, headers, body)
        content = json.dumps(reply).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("retry-after", str(RETRY_AFTER_S))
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = answered

    def log_message(self, format: str, *arguments: object) -> None:
        """`World.asked` is the log."""


class Listener(ThreadingHTTPServer):
    """A server that doesn't ask for its own name, which nobody in its network knows."""

    daemon_threads = True

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


def serve(certificate: Path) -> None:
    """All of it, until standard input ends; runs inside its network."""
    Handler.world = World()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    secure = Listener((INSIDE, 443), Handler)
    secure.socket = context.wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
    for listener in (secure, Listener((INSIDE, CONTROL_PORT), Handler)):
        threading.Thread(target=listener.serve_forever, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
    sys.exit()


# -- for tests -------------------------------------------------------------------------------------

# Not at the top: the program above needs the standard library alone.
import httpx  # noqa: E402
from cryptography.hazmat.primitives import serialization  # noqa: E402

from tests.egress.world import _certificate, _write  # noqa: E402


@dataclass(frozen=True, slots=True)
class Outside:
    """The running services. `environment` is what a server needs whose sandboxes are to see them."""

    environment: dict[str, str]

    def _order(self, **order: Any) -> Any:
        return httpx.post(f"http://{INSIDE}:{CONTROL_PORT}/", json=order, timeout=START_S).raise_for_status().json()

    def know(self, name: str, **what: Any) -> None:
        """All that a service knows from now on; it answers again."""
        self._order(do="know", name=name, what=what)

    def known(self, name: str) -> dict[str, Any]:
        """What a service knows by now."""
        found: dict[str, Any] = self._order(do="look")["knows"][name]
        return found

    def fail(self, name: str, *statuses: int) -> None:
        """The next answers of a service; 429 comes with a `Retry-After`. 0 is the truth, and -503 does what was asked and then
        answers 503."""
        self._order(do="fail", name=name, **{"with": list(statuses)})

    def forget(self) -> None:
        """Forget what was asked."""
        self._order(do="forget")

    def asked(self, name: str) -> list[dict[str, Any]]:
        """What a service was asked, in order: `method`, `path`, whether it was `authorized`, and the `status` of the answer."""
        return [one for one in self._order(do="look")["asked"] if one["name"] == name]


@contextlib.contextmanager
def outside(directory: Path) -> Iterator[Outside]:
    """Start the services; `directory` is empty or does not exist. Nothing of them is left afterwards. Needs root."""
    directory.mkdir(exist_ok=True)
    root_key, root = _certificate("Root of the services", None, None, names=())
    _write(directory / "services.pem", *_certificate("services", root_key, root, names=NAMES))
    (directory / "ca.pem").write_bytes(root.public_bytes(serialization.Encoding.PEM))
    network, link = f"outside{os.getpid()}", f"os{os.getpid()}"

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    ip("netns", "add", network)
    try:
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", network)
        ip("addr", "add", f"{OUTSIDE}/30", "dev", link)
        ip("link", "set", link, "up")
        ip("-n", network, "addr", "add", f"{INSIDE}/30", "dev", "eth0")
        ip("-n", network, "link", "set", "eth0", "up")
        ip("-n", network, "route", "add", "default", "via", OUTSIDE)
        command = ["ip", "netns", "exec", network, sys.executable, __file__, str(directory / "services.pem")]
        with (
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
            name_server() as (address, port),
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            try:
                dns, roots = f"{address}:{port}", str(directory / "ca.pem")
                yield Outside({"HUTCH_EGRESS__DNS_UPSTREAMS": dns, "HUTCH_EGRESS__EXTRA_TRUST_ROOTS": roots})
            finally:
                process.stdin.close()
                process.wait(START_S)
    finally:
        # The link goes with the network that has its other end.
        ip("netns", "del", network)


@contextlib.contextmanager
def name_server() -> Iterator[tuple[str, int]]:
    """Answers about `NAMES`, and asks the machine's own name server about the rest; its address and port."""
    resolver = next(
        line.split()[1] for line in Path("/etc/resolv.conf").read_text().splitlines() if line.startswith("nameserver")
    )
    family = socket.AF_INET6 if ":" in resolver else socket.AF_INET
    ours = [b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0" for name in NAMES]

    def answer(question: bytes, client: Any) -> None:
        if any(question[12:].lower().startswith(name) for name in ours):
            wants_ipv4 = question[12:].partition(b"\0")[2][:2] == b"\0\1"
            record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(INSIDE) if wants_ipv4 else b""
            end = 12 + question[12:].index(b"\0") + 5
            counts = b"\0\1" + (b"\0\1" if wants_ipv4 else b"\0\0") + b"\0\0\0\0"
            listener.sendto(question[:2] + b"\x81\x80" + counts + question[12:end] + record, client)
            return
        with socket.socket(family, socket.SOCK_DGRAM) as upstream, contextlib.suppress(OSError):
            upstream.settimeout(5)
            upstream.sendto(question, (resolver, 53))
            listener.sendto(upstream.recv(4096), client)

    def loop() -> None:
        while True:
            try:
                question, client = listener.recvfrom(4096)
            except OSError:
                return
            if not question:
                return
            threading.Thread(target=answer, args=(question, client), daemon=True).start()

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        yield listener.getsockname()
        # An empty datagram is its end.
        listener.sendto(b"", listener.getsockname())
        thread.join()
