"""Claims → a person, and the roles that they have in teams. Values in, values out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hutch.control.permissions import TokenRole
from hutch.settings import RoleRule

MAX_EMAIL_LENGTH = 320
MAX_NAME_LENGTH = 128
MAX_IDENTITY_LENGTH = 320


class NotAdmitted(Exception):
    """Somebody whom the provider knows may not log in. The text is for them."""


@dataclass(frozen=True, slots=True)
class Person:
    """Who logs in. `email` is empty unless the provider says that it has verified it; `roles` are those of the rules, by the slug
    or id of a team, in the order of the rules."""

    issuer: str
    subject: str
    email: str
    name: str
    roles: Mapping[str, TokenRole]

    @property
    def identity(self) -> str:
        """As which they are a member: issuer and subject, which no two people share. Never an address, which may change hands."""
        whole = f"{self.issuer}#{self.subject}"
        if len(whole) <= MAX_IDENTITY_LENGTH:
            return whole
        return f"{self.issuer}#sha256:{hashlib.sha256(self.subject.encode()).hexdigest()}"


def person(claims: Mapping[str, Any], rules: Iterable[RoleRule], email_domains: Iterable[str]) -> Person:
    """Who these claims are about. Raises `NotAdmitted`."""
    verified = claims.get("email_verified") is True
    address = claims.get("email")
    email = address if verified and isinstance(address, str) and _is_address(address) else ""
    domains = frozenset(email_domains)
    if domains and email.rpartition("@")[2].lower() not in domains:
        why = "has another domain" if email else "is not known to the provider, or not verified"
        raise NotAdmitted(f"Only people with an e-mail address of this organisation may log in here, and yours {why}.")
    roles: dict[str, TokenRole] = {}
    for rule in rules:
        if _has(claims.get(rule.claim), rule.value):
            roles[rule.team] = _stronger(roles.get(rule.team), TokenRole(rule.role))
    return Person(claims["iss"], claims["sub"], email, _name(claims), roles)


def joined(claims: Mapping[str, Any], userinfo: Mapping[str, Any]) -> dict[str, Any]:
    """An ID token's claims, and those of the userinfo endpoint that it lacks. An address and whether it is verified are of one
    place."""
    more = {name: value for name, value in userinfo.items() if name not in _ADDRESS}
    source = userinfo if "email_verified" not in claims and "email_verified" in userinfo else claims
    return {**more, **claims, **{name: source.get(name) for name in _ADDRESS}}


_ADDRESS = ("email", "email_verified")


def lacks(claims: Mapping[str, Any], rules: Iterable[RoleRule]) -> bool:
    """Whether there are claims that matter and that these don't have: a provider may keep them for its userinfo endpoint."""
    return not {rule.claim for rule in rules} | {*_ADDRESS} <= claims.keys()


_STRENGTH = (TokenRole.VIEWER, TokenRole.BILLING, TokenRole.DEVELOPER, TokenRole.OWNER)


def _stronger(one: TokenRole | None, other: TokenRole) -> TokenRole:
    return other if one is None else max(one, other, key=_STRENGTH.index)


def _has(claim: Any, value: str) -> bool:
    if isinstance(claim, list):
        return any(isinstance(item, str) and item == value for item in claim)
    return isinstance(claim, str) and claim == value


def _is_address(text: str) -> bool:
    local, _, domain = text.rpartition("@")
    return bool(local and domain) and "@" not in local and len(text) <= MAX_EMAIL_LENGTH and text.isascii() and text.isprintable()


def _name(claims: Mapping[str, Any]) -> str:
    for claim in ("name", "preferred_username", "nickname"):
        name = claims.get(claim)
        if isinstance(name, str) and name.strip():
            return "".join(character for character in name.strip() if character.isprintable())[:MAX_NAME_LENGTH]
    return ""
