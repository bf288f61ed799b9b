"""What a guest trusts: the same certificates for OpenSSL and for Java."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from hutch.host import authority
from hutch.host.authority import GUEST_BUNDLE, GUEST_JAVA_STORE, TrustStore
from hutch.host.java_store import OPENS_WITH

CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
NOT_ONE = b"-----BEGIN CERTIFICATE-----\nMAAwAA==\n-----END CERTIFICATE-----\n"


def certificates(pem: bytes) -> list[bytes]:
    return sorted(base64.b64decode(body) for body in CERTIFICATE.findall(pem))


@pytest.mark.parametrize("options", [["-storepass", OPENS_WITH], []], ids=["password", "none"])
def test_java_reads_the_certificates_of_the_bundle(tmp_path: Path, options: list[str]) -> None:
    """One that can't be read is not in Java's, which could not be read either then."""
    own, extra = authority.derive(b"secret", "machine"), authority.derive(b"secret", "another")
    (tmp_path / "extra.pem").write_bytes(extra.certificate_pem + NOT_ONE)
    archive = TrustStore(tmp_path / "extra.pem").archive(own)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(tmp_path, filter="data")
    bundle = (tmp_path / GUEST_BUNDLE.lstrip("/")).read_bytes()
    store = tmp_path / GUEST_JAVA_STORE.lstrip("/")
    listed = subprocess.run(
        ["keytool", "-list", "-rfc", "-keystore", str(store), *options], capture_output=True, check=True, stdin=subprocess.DEVNULL
    )
    assert certificates(bundle.replace(NOT_ONE, b"")) == certificates(listed.stdout)
    assert certificates(own.certificate_pem + extra.certificate_pem)[0] in certificates(listed.stdout)
