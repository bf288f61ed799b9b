"""A registry that says whatever a test wants: over real HTTP, in a thread."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.oci.images import Made


@dataclass(frozen=True, slots=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    path: str
    authorization: str | None


@dataclass
class Scripted:
    """`answers` by path, without the query; everything else is 404. `guard` may answer first."""

    host: str
    answers: dict[str, Answer] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    guard: Callable[[Seen], Answer | None] = lambda _: None

    def put(self, made: Made, repository: str = "a", tag: str = "latest") -> str:
        """The image's reference."""
        manifest = Answer(body=made.manifest, headers={"content-type": made.media_type})
        for name in (tag, made.digest):
            self.answers[f"/v2/{repository}/manifests/{name}"] = manifest
        for digest, blob in made.blobs.items():
            self.answers[f"/v2/{repository}/blobs/{digest}"] = Answer(body=blob)
        return f"{self.host}/{repository}:{tag}"

    def asked(self, part: str) -> int:
        """How many requests had `part` in their path."""
        return sum(part in one.path for one in self.seen)


@contextmanager
def scripted_registry() -> Iterator[Scripted]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen = Seen(self.path, self.headers.get("authorization"))
            script.seen.append(seen)
            answer = script.guard(seen) or script.answers.get(self.path.partition("?")[0], Answer(404))
            self.send_response(answer.status)
            for name, value in ({"content-length": str(len(answer.body))} | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script = Scripted(f"127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
