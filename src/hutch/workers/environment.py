"""What a run finds in its environment: the worker's secrets, without those that the gateway adds to requests, with OAuth tokens.

A secret may have any name that a variable can have (the SDK does not say otherwise), but not one by which the runner speaks to
the SDK. A name like those of OAuth tokens is a leftover of `env pull`, which writes tokens down beside secrets: it is taken,
and the real token counts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from hutch.errors import BadRequestError
from hutch.workers import credentials as declared
from hutch.workers.destinations import EVERYTHING, Destinations, inside
from hutch.workers.manifest import Manifest
from hutch.workers.reading import shown

RESERVED = frozenset({"NOTION_INPUT_PAYLOAD_PATH", "NOTION_RUN_METADATA_PATH", "NOTION_WORKFLOW_STEP_DIRECTORY"})
MAX_NAME = 256
MAX_VALUE_BYTES = 65_536
MAX_TOTAL_BYTES = 1_048_576
"""All secrets of a worker together; Linux takes no program with an environment of several megabytes."""
_NAME = re.compile(r"[^\x00-\x20=\x7f]+")
_TOKEN = re.compile(r"OAUTH_[0-9A-F]*_ACCESS_TOKEN")


def wrong_secret(name: str, value: str) -> str | None:
    """What is wrong with a secret, as a sentence that does not have its value; None for a good one."""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        return f"{shown(name)} can't be the name of a variable: 1 to {MAX_NAME} characters, without `=`, blanks and line breaks."
    if name in RESERVED:
        return f"{name} is set by the runner; choose another name."
    if "\x00" in value or len(value.encode("utf-8", "replace")) > MAX_VALUE_BYTES:
        return f"The value of {shown(name)} should have at most {MAX_VALUE_BYTES} bytes, and no NUL."
    return None


def too_large(secrets: Mapping[str, str]) -> bool:
    """Whether all secrets together are more than a program can be started with."""
    return (
        sum(len(name.encode()) + len(value.encode("utf-8", "replace")) + 2 for name, value in secrets.items()) > MAX_TOTAL_BYTES
    )


def is_token_name(name: str) -> bool:
    """Whether this is the variable of an OAuth token."""
    return bool(_TOKEN.fullmatch(name))


def environment(secrets: Mapping[str, str], credentials: Collection[str], tokens: Mapping[str, str]) -> dict[str, str]:
    """The variables of a run, or of a build once it is locked down. `credentials` are the names whose values the gateway adds;
    `tokens` are OAuth tokens by variable, of what is connected."""
    plain = {name: value for name, value in secrets.items() if name not in credentials and name not in RESERVED}
    return plain | dict(tokens)


def check(name: str, value: str) -> None:
    """Raises `BadRequestError` for what can't be a secret."""
    sentence = wrong_secret(name, value)
    if sentence is not None:
        raise BadRequestError("bad_request", f"Invalid request: {sentence}")


def variables(secrets: Mapping[str, str], manifest: Manifest | None, tokens: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of a run of this manifest; without one, those of a build."""
    hidden = declared.secret_names(manifest.credentials) if manifest is not None else frozenset()
    return environment(secrets, hidden, tokens or {})


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """An OAuth token of which a run has a placeholder: the gateway puts it into requests to `hosts`. `credential` is the name by
    which the policy knows it."""

    variable: str
    credential: str
    token: str
    hosts: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Placed({self.variable!r}, {self.hosts!r})"


def policy(
    secrets: Mapping[str, str],
    manifest: Manifest,
    allowed: Destinations = EVERYTHING,
    placed: Sequence[Placed] = (),
) -> dict[str, Any]:
    """The network policy of a run: what is allowed is reachable, and declared credentials and placed tokens are set where they
    belong, as far as that is allowed. Where a value is missing the rule names a credential that nobody has, which closes it.

    Raises `ValueError` when there are more tokens than one rule may set.
    """
    headers: declared.Headers = {}
    for domain, transforms in declared.policy_rules(manifest.credentials).items():
        (transform,) = transforms
        (each,) = transform["transform"]
        headers[domain] = {name: _value(header, secrets) for name, header in each["headers"].items()}
    for number, one in enumerate(placed):
        use = {"credential": one.credential, "placeholder": one.variable}
        for host in one.hosts:
            # Such a rule sets no header: it replaces the placeholder wherever a request has it.
            headers.setdefault(host, {})[f"x-worker-token-{number}"] = use
    return _narrowed(declared.rules_of(headers), allowed)


def _narrowed(rules: dict[str, list[dict[str, Any]]], allowed: Destinations) -> dict[str, Any]:
    """The policy that allows what is allowed, with the rules that lie within it."""
    if allowed == EVERYTHING:
        return {"allow": {**rules, "*": []}}
    found = allowed.policy()
    if not rules or not allowed.allow:
        return found
    within = inside(list(rules), allowed)
    names: dict[str, list[dict[str, Any]]] = {domain: rule for domain, rule in rules.items() if domain in within}
    for name in allowed.allow:
        # A policy follows the most specific name alone, so what is narrower than a rule has its headers too.
        wider = next((rules[above] for above in declared.wildcards_above(name) if above in rules), [])
        names.setdefault(name, wider)
    found["allow"] = names
    return found


def _value(header: dict[str, str], secrets: Mapping[str, str]) -> Any:
    value = secrets.get(header["credential"])
    return header if value is None else header["format"].replace("{}", value, 1)
