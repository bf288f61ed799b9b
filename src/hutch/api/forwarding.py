"""The identity of forwarded requests: the key that signs their tokens, and what verifies them.

A rule with a `forwardURL` sends requests to a server of the user's, with a token (RS256) that says which sandbox they come from.
The gateway signs; this process has the key, gives it to the host on every new connection, and publishes its public half. The
issuer is this server's URL.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.control import answers
from hutch.errors import InternalError
from hutch.host.protocol import ForwardingKey
from hutch.storage.sealing import read_or_create

router = APIRouter(route_class=PlainRoute, tags=["system"])

KEY_BITS = 2048


class ForwardingSigner:
    """The key in a private file, made on first use. Raises `InternalError` for a file that is something else."""

    def __init__(self, path: Path) -> None:
        pem = read_or_create(path, _new_key)
        numbers = _public_numbers(pem)
        if numbers is None:
            raise InternalError("forwarding_key_unreadable", f"{path} is not an RSA key. Remove it to have another one made.")
        self.pem = pem.decode()
        self._modulus, self._exponent = _encoded(numbers.n), _encoded(numbers.e)
        # RFC 7638: the key's id is the hash of what it is.
        self.key_id = _base64url(
            hashlib.sha256(f'{{"e":"{self._exponent}","kty":"RSA","n":"{self._modulus}"}}'.encode()).digest()
        )

    def jwks(self) -> dict[str, Any]:
        """The public half, as a JSON Web Key Set."""
        key = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.key_id, "n": self._modulus, "e": self._exponent}
        return {"keys": [key]}


@functools.lru_cache(maxsize=1)
def _public_numbers(pem: bytes) -> rsa.RSAPublicNumbers | None:
    """Of a private key, which is checked: that takes longer than all else that is read. None for one of another kind."""
    key = load_pem_private_key(pem, None)
    return key.public_key().public_numbers() if isinstance(key, rsa.RSAPrivateKey) else None


def _new_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _encoded(number: int) -> str:
    return _base64url(number.to_bytes((number.bit_length() + 7) // 8))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def announce(services: Services) -> None:
    """Give the host what its gateway signs with."""
    signer = services.forwarding
    if signer is not None:
        key = ForwardingKey(issuer=services.issuer, key_pem=signer.pem, key_id=signer.key_id)
        await services.host.call("forwarding.key", key)


@router.get("/.well-known/jwks.json", openapi_extra=documented(public=True, answer=answers.JsonWebKeys))
async def jwks(request: Request) -> Response:
    """The keys that verify the tokens of forwarded requests."""
    signer = services_of(request).forwarding
    return JsonResponse(signer.jwks() if signer is not None else {"keys": []})


@router.get("/.well-known/jwks", openapi_extra=documented(public=True, answer=answers.JsonWebKeys))
async def jwks_as_the_vendor_names_it(request: Request) -> Response:
    """The same, where the vendor's helper looks for it."""
    return await jwks(request)
