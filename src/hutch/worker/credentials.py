"""Secrets that the network adds to requests, so that a program never has them.

The rules are the vendor's; the platform looks at them again when a worker is deployed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hutch.worker.errors import WorkerError

CREDENTIAL = "{{credential}}"
"""Stands for the value in a header: `f"Bearer {CREDENTIAL}"`."""
MAX_DOMAINS = 20
MAX_HEADERS = 20
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})+")
_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ALLOWED = ("NOTION_API_TOKEN", "NOTION_API_BASE_URL")


def declared(key: str, network: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The manifest's form of headers by domain. Raises `WorkerError`."""
    if not _KEY.fullmatch(key) or (key.upper().startswith("NOTION_") and key.upper() not in _ALLOWED):
        raise WorkerError(
            f"A credential's key should be a letter and letters, digits or `_`, without NOTION_ first, not {key!r}."
        )
    if not 1 <= len(network) <= MAX_DOMAINS:
        raise WorkerError(f"Credential {key!r} should name 1 to {MAX_DOMAINS} domains.")
    rules: dict[str, dict[str, str]] = {}
    for written, headers in network.items():
        domain = written.strip().lower().removesuffix(".")
        if not _DOMAIN.fullmatch(domain):
            raise WorkerError(f"Credential {key!r}: {written!r} should be a host such as api.example.com or *.example.com.")
        if domain in rules:
            raise WorkerError(f"Credential {key!r}: the domain {domain!r} is named twice.")
        if not 1 <= len(headers) <= MAX_HEADERS or len({name.lower() for name in headers}) < len(headers):
            raise WorkerError(f"Credential {key!r}: 1 to {MAX_HEADERS} different headers for {domain!r}, please.")
        for name, template in headers.items():
            if not _HEADER.fullmatch(name):
                raise WorkerError(f"Credential {key!r}: {name!r} is not the name of a header.")
            if template.count(CREDENTIAL) != 1 or _CONTROL.search(template):
                raise WorkerError(f"Credential {key!r}: the header {name!r} should contain CREDENTIAL once, in one line.")
        rules[domain] = dict(headers)
    network_rules = [{"domain": domain, "transform": [{"headers": headers}]} for domain, headers in rules.items()]
    return {"key": key, "network": network_rules}
