"""Where the base image's packages come from: the mirrors that this machine's own apt is set up with."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from scripts.setup.report import SetupError

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_APT = Path("/etc/apt")
_ONE_LINE = re.compile(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)$")


@dataclass(frozen=True)
class Mirror:
    """Base addresses of a Debian archive and of its security updates; None: not known."""

    archive: str
    security: str | None


def parse_sources(text: str, codename: str) -> list[tuple[str, str]]:
    """`(address, suite)` pairs for `codename` in apt sources, in either of apt's two formats."""
    found = [(match[1], match[2]) for line in text.splitlines() if (match := _ONE_LINE.match(line.strip()))]
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[key] = f"{fields.get(key, '')} {line.strip()}"
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.lower()
                fields[key] = value.strip()
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() != "no":
            found += [(uri, suite) for uri in fields.get("uris", "").split() for suite in fields.get("suites", "").split()]
    wanted = re.compile(rf"{re.escape(codename)}(-security|-updates|/updates)?")
    return [(uri, suite) for uri, suite in found if uri.startswith(("http://", "https://")) and wanted.fullmatch(suite)]


def find(codename: str, apt: Path = _APT) -> Mirror | None:
    """The mirror to use: `$HUTCH_DEBIAN_MIRROR`, else what a Debian host's apt uses for `codename`, its own release.

    None where neither says (an Ubuntu host): mmdebstrap then takes Debian's own.
    """
    named = os.environ.get("HUTCH_DEBIAN_MIRROR")
    if named:
        if not named.startswith(("http://", "https://")):
            raise SetupError(f"HUTCH_DEBIAN_MIRROR is {named!r}, but must be the http(s) address of a Debian archive.")
        return Mirror(named, os.environ.get("HUTCH_DEBIAN_SECURITY_MIRROR"))
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.list"))]
    files += sorted((apt / "sources.list.d").glob("*.sources"))
    pairs = [pair for file in files if file.is_file() for pair in parse_sources(file.read_text(encoding="utf-8"), codename)]
    archive = next((uri for uri, suite in pairs if suite == codename), None)
    security = next((uri for uri, suite in pairs if suite != codename and "updates" not in suite.split("-")), None)
    return Mirror(archive, security) if archive else None


def keyring() -> str:
    """The keys that the packages must be signed with: `$HUTCH_DEBIAN_KEYRING`, else the distribution's copy of Debian's."""
    return os.environ.get("HUTCH_DEBIAN_KEYRING") or KEYRING


def sources(mirror: Mirror, suite: str, keys: str = KEYRING) -> str:
    """apt's sources for `suite` from `mirror`, in the deb822 format."""
    stanzas = [(mirror.archive, f"{suite} {suite}-updates")]
    if mirror.security:
        stanzas.append((mirror.security, f"{suite}-security"))
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {keys}\n" for uri, suites in stanzas
    )


def without_credentials(mirror: Mirror) -> Mirror:
    """`mirror` as it may stand in an image: a user name and password in its addresses stay on the host."""

    def clean(uri: str) -> str:
        parts = urlsplit(uri)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    return Mirror(clean(mirror.archive), clean(mirror.security) if mirror.security else None)
