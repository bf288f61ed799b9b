"""Checking policies and asking about them. Both release the interpreter's lock; neither does I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from hutch.egress import hutch_native
from hutch.errors import BadRequestError
from hutch.settings import Settings, SettingsError

Role = Literal["tenant", "bounds"]
Policy = str | bytes | Mapping[str, Any]
"""JSON text, or what it means: a string is always JSON text, so that allow-all is `'"allow-all"'`."""

MAX_POLICY_BYTES = 1024 * 1024
"""The engine refuses a longer one."""
MAX_OUTSIDE_WARNINGS = 32
INVALID = "Invalid request: the network policy"

SANDBOX_POOLS = ("100.64.0.0/10",)
"""Where sandboxes get their addresses from: no policy and no operator opens these."""


class Boundaries(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy is checked against: what the operator opened, addresses of the host and of sandboxes, and the policies (JSON
    values) that bound a tenant's."""

    allow_private: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    sandbox_pools: tuple[str, ...] = SANDBOX_POOLS
    bounds: tuple[Any, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Boundaries:
        """Those that a server's settings give. Raises `SettingsError`."""
        found = cls(allow_private=settings.egress.allow_private)
        try:
            hutch_native.check_settings(_encode(found))
        except hutch_native.PolicyError as error:
            pointer, _, message = error.args
            index = pointer.rpartition("/")[2]
            value = found.allow_private[int(index)] if index.isdecimal() else ""
            raise SettingsError(f"`egress.allow_private`: {value} {message}.") from error
        return found


class PolicyWarning(msgspec.Struct, frozen=True):
    """Something valid that its author may not have meant. `message` ends a sentence about what `pointer` names."""

    pointer: str
    code: str
    message: str


class CheckedPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A valid policy.

    `text` is the request form as JSON, with secret values: to be sealed or sent to a host, never to be shown. `read_back` is
    what clients read. `hash` covers no secret values. `credentials` are the names of the stored ones that rules use;
    `placeholders` pairs of an environment variable and the credential that its placeholder stands for; `intercepted`
    the patterns whose TLS is terminated; `empty` is true where nothing is allowed although it is not called deny-all;
    `outside` says what lies beyond the bounds and will never have an effect.
    """

    text: str
    read_back: dict[str, Any]
    hash: str
    mode: Literal["allow-all", "deny-all", "custom"]
    warnings: tuple[PolicyWarning, ...]
    credentials: tuple[str, ...]
    placeholders: tuple[tuple[str, str], ...]
    intercepted: tuple[str, ...]
    empty: bool
    outside: tuple[dict[str, str], ...]


class Dns(msgspec.Struct, frozen=True):
    """What a DNS question for the name is answered with: `resolve`, `virtual`, `no_data`, `refuse`."""

    decision: str
    reason: str | None


class RuleReference(msgspec.Struct, frozen=True):
    """The rule that decided: its place under its pattern, its stable id, and whether it is the tenant's or the bounds'."""

    index: int
    id: str
    of: str


class Address(msgspec.Struct, frozen=True):
    """The address that an answer is about; `assumed` where nobody said and nothing was resolved."""

    ip: str
    assumed: bool


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What would happen to a request. `reason` is a code of audit records, `message` says it in words."""

    decision: Literal["allow", "deny", "inject", "forward", "respond", "pass_unmatched"]
    reason: str
    message: str
    stage: Literal["dns", "connection", "request"]
    dns: Dns | None
    mode: Literal["splice", "intercept", "plain", "raw"] | None
    pattern: str | None
    rule: RuleReference | None
    injected: tuple[str, ...]
    credentials: tuple[str, ...]
    status: int | None
    address: Address | None


@dataclass(frozen=True, slots=True)
class Question:
    """One request of a guest. `address` is what it dials; `credentials` says which of the stored ones exist (all that are not
    named do)."""

    url: str
    method: str = "GET"
    headers: Sequence[tuple[str, str]] = ()
    address: str | None = None
    credentials: Mapping[str, bool] | None = None


_encode = msgspec.json.encode


def check(
    policy: Policy, previous: str | None = None, role: Role = "tenant", settings: Boundaries | None = None
) -> CheckedPolicy:
    """A policy in any of its forms, checked. `previous` is the `text` of the one that it replaces.

    Raises `BadRequestError` with the code `invalid_network_policy` and the detail `pointer`.
    """
    old = previous.encode() if previous is not None else None
    try:
        answer = hutch_native.compile_policy(_json(policy), old, role, _encode(settings or Boundaries()))
    except hutch_native.PolicyError as error:
        raise _refused(error) from error
    return msgspec.json.decode(answer, type=CheckedPolicy)


def within(settings: Boundaries, bounds: Sequence[str]) -> Boundaries:
    """The same settings for a policy that is bounded by these, JSON texts of policies that were checked."""
    return msgspec.structs.replace(settings, bounds=tuple(msgspec.Raw(text.encode()) for text in bounds))


def operator_policy(settings: Settings) -> str | None:
    """The policy that bounds all others, from the file that the settings name, in request form. Raises `SettingsError`."""
    path = settings.egress.policy
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"`egress.policy`: {path} can't be read: {error.strerror}.") from error
    try:
        return check(raw, role="bounds", settings=Boundaries.of(settings)).text
    except BadRequestError as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f"`egress.policy`: {path} is no policy: {error.message.removeprefix(INVALID)}") from error


def outside_warnings(policy: Policy, checked: CheckedPolicy) -> tuple[PolicyWarning, ...]:
    """What a policy names beyond its bounds, as warnings with pointers into it. It has no effect, so it is no error: bounds may
    be widened later, and one policy may be meant for several projects."""
    pointers = _pointers(_json(policy))
    found: dict[str, PolicyWarning] = {}
    for item in checked.outside:
        ((kind, what),) = item.items()
        named = "allows everything" if kind == "mode" else f"allows {what}"
        message = f"{named}, not all of which the operator, the team and the project allow: the rest never has an effect"
        found.setdefault(what, PolicyWarning(pointers.get(what, ""), "outside_bounds", message))
    warnings = list(found.values())
    if len(warnings) > MAX_OUTSIDE_WARNINGS:
        more = len(warnings) - MAX_OUTSIDE_WARNINGS
        message = f"has {more} more names or ranges, not all of which the operator, the team and the project allow"
        warnings[MAX_OUTSIDE_WARNINGS:] = [PolicyWarning("", "outside_bounds", message)]
    return tuple(warnings)


def _pointers(raw: bytes) -> dict[str, str]:
    """Where names and ranges stand in a policy of any form, as far as they are written as the engine writes them."""
    try:
        sent: Any = msgspec.json.decode(raw)
    except (msgspec.DecodeError, ValueError, RecursionError):
        # The engine takes some text that is no JSON for others, such as halves of surrogate pairs.
        return {}
    base, own = "", sent.get("hutch") if isinstance(sent, dict) else None
    if isinstance(own, dict) and isinstance(own.get("policy"), dict):
        base, sent = "/hutch/policy", own["policy"]
    if not isinstance(sent, dict):
        return {}
    subnets = sent.get("subnets")
    lists = {
        "/allow": sent.get("allow"),
        "/allowedDomains": sent.get("allowedDomains"),
        "/subnets/allow": subnets.get("allow") if isinstance(subnets, dict) else None,
        "/allowedCIDRs": sent.get("allowedCIDRs"),
    }
    found: dict[str, str] = {}
    for place, items in lists.items():
        keys = [str(key) for key in items] if isinstance(items, dict) else range(len(items)) if isinstance(items, list) else ()
        for key, item in zip(keys, items or (), strict=True):
            if isinstance(item, str):
                escaped = str(key).replace("~", "~0").replace("/", "~1")
                pointer = f"{base}{place}/{escaped}"
                found.setdefault(item.lower().removesuffix("."), pointer)
                found.setdefault(f"{item}/{128 if ':' in item else 32}", pointer)
    return found


def closed_ranges(settings: Boundaries) -> list[str]:
    """The ranges that no policy opens under these settings; some lie within others."""
    ranges: list[str] = msgspec.json.decode(hutch_native.closed_ranges(_encode(settings)), type=list[str])
    return ranges


def explain(policies: Sequence[Policy], question: Question, settings: Boundaries | None = None) -> Explanation:
    """What happens to a request under `policies`: bounds first, the tenant's last. Nothing is resolved or sent.

    Raises `BadRequestError`: `invalid_network_policy` as `check`, `bad_request` for a question that can't be meant.
    """
    settings = settings or Boundaries()
    # Checked one by one, so that an error is about one of them and says where in it.
    texts = [check(policy, role="bounds", settings=settings).text for policy in policies[:-1]]
    texts += [check(policy, settings=settings).text for policy in policies[-1:]]
    asked = {
        "policies": [msgspec.Raw(text.encode()) for text in texts],
        "settings": settings,
        "url": question.url,
        "method": question.method,
        "headers": list(question.headers),
        "address": question.address,
        "credentials": dict(question.credentials or {}),
    }
    try:
        answer = hutch_native.explain(_encode(asked))
    except hutch_native.PolicyError as error:
        raise _refused(error) from error
    return msgspec.json.decode(answer, type=Explanation)


def _json(policy: Policy) -> bytes:
    if isinstance(policy, bytes):
        return policy
    return policy.encode("utf-8", "surrogatepass") if isinstance(policy, str) else _encode(policy)


def _refused(error: hutch_native.PolicyError) -> BadRequestError:
    pointer, code, message = error.args
    if code != "invalid_network_policy":
        return BadRequestError("bad_request", f"Invalid request: {pointer.removeprefix('/') or 'it'} {message}.")
    subject = f"the network policy: {pointer}" if pointer else "the network policy"
    return BadRequestError("invalid_network_policy", f"Invalid request: {subject} {message}.", details={"pointer": pointer})
