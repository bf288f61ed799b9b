"""With whom the server speaks as the provider of logins."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from hutch.errors import UnavailableError
from hutch.login.provider import Provider
from hutch.login.secrets import BrowserSecrets, new_secret
from hutch.settings import SettingsError, load
from tests.login.conftest import settings_for
from tests.login.hostile import hostile_provider


def certificate(directory: Path, address: str) -> tuple[Path, Path]:
    """A certificate of an address, its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "provider of tests")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = directory / f"{address}.pem", directory / f"{address}.key"
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, private


@pytest.mark.parametrize(
    ("address", "trusted", "known"), [("127.0.0.1", True, True), ("127.0.0.1", False, False), ("127.0.0.2", True, False)]
)
async def test_only_a_provider_whose_certificate_is_right_is_asked(
    tmp_path: Path, address: str, trusted: bool, known: bool
) -> None:
    chain, key = certificate(tmp_path, address)
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(chain, key)
    trust = ssl.create_default_context()
    if trusted:
        trust.load_verify_locations(chain)
    with hostile_provider(served) as running:
        settings = load(Path(os.devnull), environment=settings_for(running.issuer))
        provider = Provider(settings.sso, trust, timeout_s=5)
        try:
            asking = provider.address(BrowserSecrets.of(new_secret()), "https://hutch.example/callback")
            if known:
                assert (await asking).startswith(f"{running.issuer}/authorize?response_type=code&")
            else:
                with pytest.raises(UnavailableError) as refused:
                    await asking
                assert refused.value.code == "provider_unavailable"
                assert running.asked == []
            running.said["token_endpoint"] = "http://127.0.0.1:1/token"
            provider._endpoints = provider._failed_at = None
            with pytest.raises(UnavailableError):
                await provider.address(BrowserSecrets.of(new_secret()), "https://hutch.example/callback")
        finally:
            await provider.aclose()


@pytest.mark.parametrize(
    "changed",
    [
        {"issuer": "http://id.example"},
        {"issuer": "https://"},
        {"issuer": "https://u:p@id.example"},
        {"issuer": "https://id.example/?x=1"},
        {"issuer": "https://id.example/#x"},
        {"issuer": "ftp://127.0.0.1"},
        {"issuer": "https://id.example/" + "x" * 200},
        {"client_id": ""},
        {"scopes": "email"},
        {"scopes": '["openid", "a b"]'},
        {"email_domains": "@example.com"},
        {"email_domains": "Example.com"},
        {"roles": "{"},
        {"roles": '{"claim": "g"}'},
        {"roles": '[{"claim": "g", "value": "v", "team": "t", "role": "admin"}]'},
        {"roles": '[{"claim": "g", "value": "", "team": "t", "role": "owner"}]'},
        {"roles": '[{"claim": "g", "value": "v", "team": "../t", "role": "owner"}]'},
        {"roles": '[{"claim": "g", "value": "v", "team": "t", "role": "owner", "x": 1}]'},
        {"session_ttl_s": "1"},
    ],
)
def test_settings_that_can_not_be_meant_stop_the_server(changed: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="sso"):
        load(Path(os.devnull), environment=settings_for(**{"issuer": "https://id.example", **changed}))


def test_the_clients_secret_is_shown_nowhere() -> None:
    settings = load(Path(os.devnull), environment=settings_for("https://id.example"))
    assert "secret/with" not in str([value.value for value in settings.effective()])
