"""An API that fails, throttles, hangs and reorders by a seed, in a network of its own, and what it truly has.

    worker ─▶ gateway ─▶ http://192.0.2.202:8080   (this program, in a namespace)  ◀─ test: what it knows, what it was told

Run as a program it serves; `unreliable` starts it for a test. Addresses are those of documentation: nobody's.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

OUTSIDE, INSIDE = "192.0.2.201", "192.0.2.202"
PORT = 8080
PAGE = 5
HANG_S = 4.0
START_S = 20.0
FAILURES = (("hang", 0.04), ("unavailable", 0.08), ("throttle", 0.06), ("cut", 0.05), ("reset", 0.03))
"""What happens to a request for a page, and how often."""


class Api:
    """What is true, and the chance by which it is told otherwise."""

    def __init__(self, seed: int) -> None:
        self.lock = threading.Lock()
        self.random = random.Random(seed)
        self.items: dict[str, dict[str, Any]] = {}
        """By id, the deleted among them; `changed` counts changes."""
        self.changes = 0
        self.effects: list[dict[str, Any]] = []
        self.failed: dict[str, int] = {}

    def change(self, count: int) -> None:
        """Make, change and delete so many items."""
        for _ in range(count):
            self.changes += 1
            known = [item["id"] for item in self.items.values() if not item["deleted"]]
            name = self.random.choice(known) if known and self.random.random() < 0.6 else f"i{self.changes:05}"
            deleted = name in self.items and self.random.random() < 0.3
            self.items[name] = {"id": name, "name": f"{name} {self.changes}", "changed": self.changes, "deleted": deleted}

    def control(self, order: dict[str, Any]) -> Any:
        if order["do"] == "change":
            self.change(order["count"])
        return {"items": list(self.items.values()), "effects": self.effects, "failed": self.failed}

    def fails(self) -> str | None:
        chance = self.random.random()
        for kind, share in FAILURES:
            if chance < share:
                self.failed[kind] = self.failed.get(kind, 0) + 1
                return kind
            chance -= share
        return None

    def page(self, path: str, query: dict[str, list[str]]) -> Any:
        if path == "/full":
            after = query.get("after", [""])[0]
            left = sorted(item["id"] for item in self.items.values() if not item["deleted"] and item["id"] > after)
            page = [self.items[name] for name in left[:PAGE]]
            answer: dict[str, Any] = {"next": left[PAGE - 1] if len(left) > PAGE else None}
        else:
            since = int(query.get("since", ["0"])[0])
            changed = sorted((item for item in self.items.values() if item["changed"] > since), key=lambda item: item["changed"])
            page = changed[:PAGE]
            answer = {"since": page[-1]["changed"] if page else since, "more": len(changed) > PAGE}
        self.random.shuffle(page)
        return {**answer, "items": page}

    def effect(self, told: dict[str, Any]) -> int:
        """Every eighth of a webhook fails the first time, before it has an effect or after."""
        before = [effect for effect in self.effects if effect["id"] == told["id"]]
        first = not before and told["kind"] == "webhook" and told["number"] % 8 == 3
        self.effects.append({**told, "counts": not first or told["number"] % 16 == 3})
        return 503 if first else 200


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: Api

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        with self.api.lock:
            failure = self.api.fails()
            body = json.dumps(self.api.page(parts.path, parse_qs(parts.query))).encode()
        if failure == "hang":
            time.sleep(HANG_S)
        elif failure == "unavailable":
            self.say(503, b"{}")
        elif failure == "throttle":
            self.say(429, b"{}", retry_after="1")
        elif failure == "reset":
            self.connection.close()
        else:
            self.say(200, body, length=len(body), cut=failure == "cut")

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.api.lock:
            if self.path == "/control":
                self.say(200, json.dumps(self.api.control(told)).encode())
            else:
                self.say(self.api.effect(told), b"{}")

    def say(self, status: int, body: bytes, *, retry_after: str = "", length: int | None = None, cut: bool = False) -> None:
        self.send_response(status)
        if retry_after:
            self.send_header("retry-after", retry_after)
        self.send_header("content-length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


class Listener(ThreadingHTTPServer):
    """A server that doesn't ask for its own name, which nobody in its network knows."""

    daemon_threads = True

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error here."""


@dataclass(frozen=True, slots=True)
class Unreliable:
    """The running API. Its control never fails."""

    url: str

    def _order(self, **order: Any) -> Any:
        asked = urllib.request.Request(f"{self.url}/control", json.dumps(order).encode(), method="POST")
        with urllib.request.urlopen(asked, timeout=START_S) as answer:
            return json.load(answer)

    def change(self, count: int) -> dict[str, str]:
        """Change so many items; the names of those that there are then, by id."""
        return {item["id"]: item["name"] for item in self._order(do="change", count=count)["items"] if not item["deleted"]}

    def effects(self) -> list[dict[str, Any]]:
        """All that came, in order; `counts` when it had an effect."""
        found: list[dict[str, Any]] = self._order(do="look")["effects"]
        return found

    def failed(self) -> dict[str, int]:
        """How many requests for pages failed in which way."""
        found: dict[str, int] = self._order(do="look")["failed"]
        return found


@contextlib.contextmanager
def unreliable(seed: int) -> Iterator[Unreliable]:
    """Start it; nothing of it is left afterwards. Needs root."""
    network, link = f"unreliable{os.getpid()}", f"ur{os.getpid()}"

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
        command = ["ip", "netns", "exec", network, sys.executable, __file__, str(seed)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            try:
                yield Unreliable(f"http://{INSIDE}:{PORT}")
            finally:
                process.stdin.close()
                process.wait(START_S)
    finally:
        # The link goes with the network that has its other end.
        ip("netns", "del", network)


if __name__ == "__main__":
    Handler.api = Api(int(sys.argv[1]))
    threading.Thread(target=Listener((INSIDE, PORT), Handler).serve_forever, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
