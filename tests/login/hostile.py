"""A provider that says whatever a test wants it to say: an HTTP server of its own, with keys of its own."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.login.conftest import CLIENT_ID

Key = Any
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SHORT_RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def public_jwk(key: Key, kid: str, **more: Any) -> dict[str, Any]:
    """A key as a JWKS has it."""
    kinds: dict[str, Any] = {
        "RSA": jwt.algorithms.RSAAlgorithm,
        "EC": jwt.algorithms.ECAlgorithm,
        "OKP": jwt.algorithms.OKPAlgorithm,
    }
    kind = "RSA" if isinstance(key, rsa.RSAPrivateKey) else "EC" if isinstance(key, ec.EllipticCurvePrivateKey) else "OKP"
    return {**json.loads(kinds[kind].to_jwk(key.public_key())), "kid": kid, "use": "sig", **more}


def signed(claims: dict[str, Any], key: Key = RSA, alg: str = "RS256", kid: str | None = "one", **header: Any) -> str:
    headers = {**({"kid": kid} if kid is not None else {}), **header}
    # Not `jwt.encode`, which looks at the claims.
    return jwt.PyJWS().encode(json.dumps(claims).encode(), key, algorithm=alg, headers=headers)


def forged(claims: dict[str, Any], header: dict[str, Any], signature: bytes = b"") -> str:
    """A token put together by hand, for what no library signs."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    return f"{part(json.dumps(header).encode())}.{part(json.dumps(claims).encode())}.{part(signature)}"


class HostileProvider:
    """What it says can be changed at any time. `asked` are the paths that it was asked for."""

    def __init__(self, server: ThreadingHTTPServer, scheme: str = "http") -> None:
        self.issuer = f"{scheme}://127.0.0.1:{server.server_address[1]}"
        self.asked: list[str] = []
        self.forms: list[dict[str, str]] = []
        self.nonce = ""
        self.challenge = ""
        self.said: dict[str, Any] = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "id_token_signing_alg_values_supported": ["RS256"],
        }
        self.keys: list[dict[str, Any]] = [public_jwk(RSA, "one")]
        self.claims: dict[str, Any] = {}
        """What is otherwise than it should be in the ID token; None removes a claim."""
        self.sign: Callable[[dict[str, Any]], str] = signed
        self.userinfo: dict[str, Any] = {}
        self.back: dict[str, str] = {}
        """What is otherwise in the query with which a browser is sent back."""
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        """What answers a path instead."""
        self._codes = 0

    def good_claims(self) -> dict[str, Any]:
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": "mallory",
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 300,
            "nonce": self.nonce,
            "email": "mallory@example.com",
            "email_verified": True,
            "name": "Mallory",
            "groups": ["eng"],
        }
        return {name: value for name, value in (claims | self.claims).items() if value is not None}

    def token_answer(self) -> dict[str, Any]:
        return {"access_token": "access", "token_type": "Bearer", "id_token": self.sign(self.good_claims())}

    # -- what a request is answered with ---------------------------------------------------------------

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        self.asked.append(parts.path)
        body = request.rfile.read(int(request.headers.get("content-length", 0))).decode()
        if parts.path in self.answers:
            self.answers[parts.path](request)
        elif parts.path == "/.well-known/openid-configuration":
            answer(request, self.said)
        elif parts.path == "/keys":
            answer(request, {"keys": self.keys})
        elif parts.path == "/userinfo":
            answer(request, self.userinfo)
        elif parts.path == "/authorize":
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            self.nonce, self.challenge = query["nonce"], query["code_challenge"]
            self._codes += 1
            back = {"code": f"code-{self._codes}", "state": query["state"], **self.back}
            target = f"{query['redirect_uri']}?{urlencode({name: value for name, value in back.items() if value})}"
            redirect(request, target)
        elif parts.path == "/token":
            form = dict(parse_qsl(body))
            self.forms.append(form)
            hashed = hashlib.sha256(form["code_verifier"].encode()).digest()
            assert base64.urlsafe_b64encode(hashed).rstrip(b"=").decode() == self.challenge
            answer(request, self.token_answer())
        else:
            answer(request, {}, 404)


def answer(request: BaseHTTPRequestHandler, content: Any, status: int = 200, raw: bytes | None = None) -> None:
    body = raw if raw is not None else json.dumps(content).encode()
    request.send_response(status)
    request.send_header("content-type", "application/json")
    request.send_header("content-length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def redirect(request: BaseHTTPRequestHandler, url: str) -> None:
    request.send_response(302)
    request.send_header("location", url)
    request.send_header("content-length", "0")
    request.end_headers()


@contextmanager
def hostile_provider(tls: ssl.SSLContext | None = None) -> Iterator[HostileProvider]:
    """On a free port; with a context of TLS it speaks that."""
    made: list[HostileProvider] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                made[0].handle(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        made.append(HostileProvider(server, "http" if tls is None else "https"))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made[0]
        server.shutdown()
        thread.join()
