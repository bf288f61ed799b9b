"""A server that passes on what it is asked, as something that stands in front of a server does."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx


@contextmanager
def passing(base_url: str, path_of: Callable[[str], str]) -> Iterator[str]:
    """Its address. `path_of` says which path at `base_url` is meant by what was asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            sent = {name: value for name, value in self.headers.items() if name.lower() in ("authorization", "content-type")}
            answer = httpx.post(f"{base_url}{path_of(self.path)}", content=body, headers=sent, timeout=60)
            self.send_response(answer.status_code)
            self.send_header("content-type", answer.headers.get("content-type", "application/json"))
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: tests say themselves what went wrong."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()
