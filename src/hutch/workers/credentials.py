"""Declared credentials: the rules that they obey, and the rules of a network policy that they become.

The rules are those of the SDK, looked at again here because the manifest may not come from it. More follow from ours: around the
value a template has neither `{}` nor `{base64}`, which mean the value in a policy, and the policy engine has to take the rules
that come of it. So headers of the connection, addresses, and wildcards under which strangers have names are refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from hutch.egress import policy
from hutch.errors import BadRequestError
from hutch.workers.manifest import Credential
from hutch.workers.reading import shown

PLACE = "{{credential}}"
MAX_CREDENTIALS = 100
MAX_TOTAL_BYTES = 262_144
MAX_RULES = 20
MAX_TRANSFORMS = 20
MAX_HEADERS = 20
MAX_DOMAIN = 253
MAX_HEADER = 256
MAX_TEMPLATE_BYTES = 8192
MAX_POLICY_HEADERS = 100
"""Headers that one rule of a network policy may set."""
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})+")
_ADDRESS = re.compile(r"[0-9.]+")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
Headers = dict[str, dict[str, Any]]
"""For each domain the headers that are set, with their values as policies have them."""
_RESERVED = "NOTION_"
_ALLOWED = frozenset({"NOTION_API_TOKEN", "NOTION_API_BASE_URL"})


def normalised(domain: str) -> str:
    """A domain as it is compared: trimmed, in lower case, without the dot at its end."""
    return domain.strip().lower().removesuffix(".")


def is_domain(domain: str) -> bool:
    """Whether this is a domain that something may be declared for, in its normal spelling."""
    bare = domain.removeprefix("*.")
    return len(domain) <= MAX_DOMAIN and _DOMAIN.fullmatch(domain) is not None and _ADDRESS.fullmatch(bare) is None


def problems(credentials: Sequence[Credential]) -> Iterator[tuple[str, str]]:
    """What is wrong: the key, and a sentence that says what to fix."""
    if len(credentials) > MAX_CREDENTIALS:
        yield credentials[MAX_CREDENTIALS].key, f"A worker may declare {MAX_CREDENTIALS} credentials, not {len(credentials)}."
    size = len(msgspec.json.encode(credentials))
    if size > MAX_TOTAL_BYTES:
        yield credentials[0].key, f"The declared credentials have {size} bytes together; there may be {MAX_TOTAL_BYTES}."
    for credential in credentials:
        for sentence in list(_wrong(credential)) or _refused(credential):
            yield credential.key, f"Credential {shown(credential.key)}: {sentence}"
    yield from _conflicts(credentials)
    try:
        policy_rules(credentials[:MAX_CREDENTIALS])
    except ValueError as error:
        yield credentials[0].key, f"The declared credentials are too many together: {error}."


def _refused(credential: Credential) -> Iterator[str]:
    """What the policy engine has against a credential that obeys the SDK's rules."""
    try:
        rules = policy_rules([credential])
    except ValueError:
        # Said about all of them together.
        return
    try:
        policy.check({"allow": rules})
    except BadRequestError as error:
        reason = error.message.removeprefix(f"{policy.INVALID}: /allow/").removesuffix(".")
        yield f"no network policy can have it: {reason}."


def _wrong(credential: Credential) -> Iterator[str]:
    if not _KEY.fullmatch(credential.key):
        yield "its key should be a letter and up to 63 letters, digits and `_`."
    elif credential.key.upper().startswith(_RESERVED) and credential.key.upper() not in _ALLOWED:
        yield f"names that begin with {_RESERVED} are reserved; choose another."
    if not 1 <= len(credential.network) <= MAX_RULES:
        yield f"it should have 1 to {MAX_RULES} network rules, not {len(credential.network)}."
    seen: set[str] = set()
    for rule in credential.network:
        domain = normalised(rule.domain)
        if domain in seen:
            yield f"the domain {shown(domain)} has two rules; make one of them."
        seen.add(domain)
        if not is_domain(domain):
            yield (
                f"{shown(rule.domain)} is no domain: give a host name of two labels or more, perhaps after `*.`, "
                "without scheme, port or path."
            )
        if not 1 <= len(rule.transform) <= MAX_TRANSFORMS:
            yield f"the rule for {shown(domain)} should have 1 to {MAX_TRANSFORMS} transforms."
        yield from _wrong_headers(domain, [item for each in rule.transform for item in each.headers.items()])
        if not all(each.headers for each in rule.transform):
            yield f"a transform for {shown(domain)} sets no header."


def _wrong_headers(domain: str, headers: list[tuple[str, str]]) -> Iterator[str]:
    if len(headers) > MAX_HEADERS:
        yield f"the rule for {shown(domain)} sets {len(headers)} headers; it may set {MAX_HEADERS}."
    times = Counter(name.lower() for name, _ in headers)
    for name in sorted(name for name in times if times[name] > 1):
        yield f"the rule for {shown(domain)} sets the header {shown(name)} twice."
    for name, template in headers:
        if len(name) > MAX_HEADER or not _TOKEN.fullmatch(name):
            yield f"{shown(name)} is no name of a header."
        wrong = _wrong_template(template)
        if wrong:
            yield f"the template of the header {shown(name)} for {shown(domain)} {wrong}."


def _wrong_template(template: str) -> str | None:
    if _CONTROL.search(template):
        return "has control characters"
    if template.count(PLACE) != 1:
        return f"should have `{PLACE}` exactly once"
    if len(template.encode()) > MAX_TEMPLATE_BYTES:
        return f"has more than {MAX_TEMPLATE_BYTES} bytes"
    made = _format(template)
    if made.count("{}") + made.count("{base64}") != 1:
        return "has `{}` or `{base64}`, which stand for the value in network policies; write it otherwise"
    return None


def overlap(one: str, other: str) -> bool:
    """Whether there is a host that both domains mean. `*.x.com` does not mean `x.com`."""
    if one == other:
        return True
    if one.startswith("*.") and other.startswith("*."):
        first, second = one[2:], other[2:]
        return first.endswith("." + second) or second.endswith("." + first)
    if one.startswith("*."):
        return other.endswith(one[1:])
    return other.startswith("*.") and one.endswith(other[1:])


def _conflicts(credentials: Sequence[Credential]) -> Iterator[tuple[str, str]]:
    # What was seen, by header and domain; a domain overlaps with itself and with wildcards, so that few places are looked at.
    seen: dict[tuple[str, str], list[Credential]] = {}
    below: dict[tuple[str, str], list[tuple[Credential, str]]] = {}
    reported: set[tuple[str, str, str]] = set()
    for credential in credentials[:MAX_CREDENTIALS]:
        for rule in credential.network[:MAX_RULES]:
            domain = normalised(rule.domain)
            parents = wildcards_above(domain)
            for name in {name.lower() for each in rule.transform[:MAX_TRANSFORMS] for name in each.headers}:
                found = [(other, at) for at in (domain, *parents) for other in seen.get((name, at), ())]
                found += below.get((name, domain), ()) if domain.startswith("*.") else ()
                for other, at in found:
                    pair = (credential.key, other.key, name)
                    if other is credential or pair in reported:
                        continue
                    reported.add(pair)
                    yield (
                        credential.key,
                        (
                            f'Credential "{credential.key}" conflicts with credential "{other.key}" for header '
                            f'"{_written(other, credential, name)}" on overlapping domains "{domain}" and "{at}"'
                        ),
                    )
                seen.setdefault((name, domain), []).append(credential)
                for parent in parents:
                    below.setdefault((name, parent), []).append((credential, domain))


def wildcards_above(domain: str) -> list[str]:
    """The wildcards, other than itself, that a domain lies under."""
    labels = domain[: MAX_DOMAIN + 1].removeprefix("*.").split(".")
    return ["*." + ".".join(labels[at:]) for at in range(1, len(labels))]


def _written(one: Credential, other: Credential, lower: str) -> str:
    """The header's name as the later of the two wrote it."""
    for credential in (other, one):
        for rule in credential.network:
            for each in rule.transform:
                for name in each.headers:
                    if name.lower() == lower:
                        return name
    return lower


def policy_rules(
    credentials: Sequence[Credential], stored: Callable[[str], str] = lambda key: key
) -> dict[str, list[dict[str, Any]]]:
    """The rules that inject valid credentials, as `allow` of a network policy has them: `{domain: [{"transform": [{"headers":
    {name: {"credential", "format"}}}]}]}`. `stored` gives the name under which a key's value is kept.

    A policy follows the most specific domain alone, so each has the headers of all wider ones as well; for one header the most
    specific declaration counts. Raises `ValueError` when one domain would get more headers than a rule may set.
    """
    declared: Headers = {}
    for credential in credentials:
        for rule in credential.network:
            headers = declared.setdefault(normalised(rule.domain), {})
            for name, template in (item for each in rule.transform for item in each.headers.items()):
                headers[name.lower()] = {"credential": stored(credential.key), "format": _format(template)}
    return rules_of(declared)


def rules_of(declared: Headers) -> dict[str, list[dict[str, Any]]]:
    """Rules that set these headers: on each domain also those of all wider ones. Raises `ValueError` as `policy_rules` does."""
    rules: dict[str, list[dict[str, Any]]] = {}
    for domain in sorted(declared):
        headers: dict[str, Any] = {}
        # The widest first, so that what is more specific replaces it.
        for wider in (*reversed(wildcards_above(domain)), domain):
            headers |= declared.get(wider, {})
        if len(headers) > MAX_POLICY_HEADERS:
            raise ValueError(f"{domain} would get {len(headers)} headers; a rule may set {MAX_POLICY_HEADERS}")
        rules[domain] = [{"transform": [{"headers": headers}]}]
    return rules


def _format(template: str) -> str:
    return template.replace(PLACE, "{}", 1)


def secret_names(credentials: Sequence[Credential]) -> frozenset[str]:
    """The secrets that are kept out of the environment of runs, because the gateway adds them."""
    return frozenset(credential.key for credential in credentials)
