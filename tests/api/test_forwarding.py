"""The key of forwarded requests: the host gets it, everybody may verify with it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import jwt
import pytest

from hutch.api.forwarding import ForwardingSigner
from hutch.errors import InternalError
from tests.api.conftest import Api


async def announced(api: Api) -> None:
    async with asyncio.timeout(10):
        while api.host.forwarding_key is None:
            await asyncio.sleep(0.01)


@pytest.mark.section("14.4")
@pytest.mark.parametrize("path", ["/.well-known/jwks.json", "/.well-known/jwks"])
async def test_what_the_host_signs_verifies_with_what_is_published(api: Api, path: str) -> None:
    await announced(api)
    key = api.host.forwarding_key
    assert key is not None
    answer = await api.client("").get(path)
    assert answer.status_code == 200
    (published,) = answer.json()["keys"]
    assert published["kid"] == key.key_id
    assert "d" not in published
    token = jwt.encode({"aud": "https://a.test", "iss": key.issuer}, key.key_pem, "RS256", {"kid": key.key_id})
    claims = jwt.decode(token, jwt.PyJWK(published), ["RS256"], audience="https://a.test")
    assert claims["iss"] == api.services.issuer


async def test_the_key_stays_the_same(tmp_path: Path) -> None:
    first, second = ForwardingSigner(tmp_path / "key"), ForwardingSigner(tmp_path / "key")
    assert first.key_id == second.key_id
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


async def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    other = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key").write_bytes(other)
    with pytest.raises(InternalError) as refused:
        ForwardingSigner(tmp_path / "key")
    assert refused.value.code == "forwarding_key_unreadable"
