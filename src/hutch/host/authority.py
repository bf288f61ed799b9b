"""The certificate authority of one sandbox, and what its guest trusts.

The key is derived from a secret of this host and the machine's id. So nothing about it is written down, a gateway or a host that
was started again has the same one, and nobody who has a sandbox's files or a snapshot has it.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import re
import ssl
import tarfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

from hutch.host.java_store import JavaStore
from hutch.isolation.beginning import Ending

HOST_BUNDLES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/cert.pem"),
)
GUEST_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
GUEST_AUTHORITY = "/usr/local/share/ca-certificates/hutch.crt"
GUEST_ALIASES = (
    "/usr/local/share/ca-certificates/vercel-proxy-ca.pem",
    "/etc/pki/ca-trust/source/anchors/vercel-proxy-ca.pem",
)
"""Where else programs written for the vendor's sandboxes look for the authority."""
GUEST_JAVA_STORE = "/etc/ssl/certs/java/cacerts"
"""Where the JDKs of Debian and Ubuntu look by themselves."""
GUEST_HOSTS = "/etc/hosts"
VARIABLES = (
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "CURL_CA_BUNDLE",
    "DENO_CERT",
    "GIT_SSL_CAINFO",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "NIX_SSL_CERT_FILE",
    "NODE_EXTRA_CA_CERTS",
    "NPM_CONFIG_CAFILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
)
"""Variables that programs take a bundle's path from."""
LIFE = datetime.timedelta(days=30)
"""Longer than any session, pooling included: the authority ends with its machine, not with its certificate."""
BACKDATED = datetime.timedelta(hours=1)
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the group of P-256 (FIPS 186-4, D.1.2.3)."""


def variables() -> dict[str, str]:
    """The environment that makes a guest's programs use the bundle, and its Java the store.

    Of the variables that a JVM reads, this is the one that every program with a JVM in it heeds, not only `java`. There is none
    that a JVM would not name on standard error.
    """
    java = {"JAVA_TOOL_OPTIONS": f"-Djavax.net.ssl.trustStore={GUEST_JAVA_STORE}"}
    return dict.fromkeys(VARIABLES, GUEST_BUNDLE) | {"NODE_USE_SYSTEM_CA": "1"} | java


@dataclass(frozen=True, slots=True)
class Authority:
    """A machine's authority: its name, PKCS #8 key and subject key identifier for the gateway, its certificate for the guest."""

    name: str
    key: bytes
    key_id: bytes
    certificate_pem: bytes


def derive(secret: bytes, machine_id: str, now: datetime.datetime | None = None) -> Authority:
    """The authority of a machine; the same for the same secret and id but for the dates of its certificate."""
    now = now or datetime.datetime.now(datetime.UTC)
    seed = HKDF(hashes.SHA256(), 48, None, b"hutch egress authority " + machine_id.encode()).derive(secret)
    key = ec.derive_private_key(int.from_bytes(seed) % (_ORDER - 1) + 1, ec.SECP256R1())
    public = key.public_key()
    common_name = f"Hutch egress {machine_id}"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoded = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Authority(common_name, encoded, identifier.digest, certificate.public_bytes(serialization.Encoding.PEM))


class TrustStore:
    """The roots that servers are verified against: this host's, and those that the operator adds.

    Raises `OSError` where there are none: a gateway without roots could verify nobody.
    """

    def __init__(self, extra: Path | None) -> None:
        bundle = next((path for path in HOST_BUNDLES if path.is_file()), None)
        texts = [path.read_bytes() for path in (bundle, extra) if path is not None]
        if not texts:
            looked = ", ".join(map(str, HOST_BUNDLES))
            raise FileNotFoundError(f"This host has no trust store (looked at {looked}). Install ca-certificates.")
        self.pem = b"\n".join(text.rstrip() for text in texts) + b"\n"
        self._java = JavaStore(_certificates(self.pem))

    def endings(self, authority: Authority) -> list[Ending]:
        """What files that are as `archive` has them without an authority have to end with."""
        certificate = authority.certificate_pem
        last = self._java.ending(ssl.PEM_cert_to_DER_cert(certificate.decode("ascii")))
        ends = {GUEST_JAVA_STORE: last}
        return [Ending(path, len(base), ends.get(path, certificate)) for path, base in self._files().items()]

    def archive(self, authority: Authority | None) -> bytes:
        """A tar of what a guest must have to trust these roots and its own authority; without one, what all guests have of it."""
        files = self._files()
        if authority is None:
            # Each guest writes its own, in place.
            files[GUEST_HOSTS] = b"127.0.0.1 localhost\n"
        for ending in self.endings(authority) if authority is not None else ():
            files[ending.path] += ending.data
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for path, content in files.items():
                entry = tarfile.TarInfo(path.lstrip("/"))
                entry.size, entry.mode = len(content), 0o644
                tar.addfile(entry, io.BytesIO(content))
        return packed.getvalue()

    def _files(self) -> dict[str, bytes]:
        """Without an authority, which comes last in each."""
        return {
            GUEST_BUNDLE: self.pem,
            GUEST_AUTHORITY: b"",
            **dict.fromkeys(GUEST_ALIASES, b""),
            GUEST_JAVA_STORE: self._java.head,
        }


def _certificates(pem: bytes) -> list[bytes]:
    """The certificates (DER) of a bundle, in order, without those that can't be read: Java would take no store with one."""
    found = []
    for block in re.findall(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", pem, re.DOTALL):
        with contextlib.suppress(ValueError), warnings.catch_warnings(action="ignore"):
            found.append(x509.load_pem_x509_certificate(block).public_bytes(serialization.Encoding.DER))
    return found
