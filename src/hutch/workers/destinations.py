"""Where a worker may connect to: what a project declares, how two such sets differ, and the network policy that comes of one.

    {"network": {"allow": ["api.example.com", "*.example.org"], "subnets": ["203.0.113.0/24"], "plaintextHttp": false},
     "oauth": {"KEY": ["api.example.com"]}}

is what `hutch.worker.json` says, `hutch` in `package.json`, or `[tool.hutch]` in `pyproject.toml`: one of them. Without `network`
a worker reaches whatever its bounds allow. Names are patterns of network policies, and the engine of those (`hutch.egress`) says
what one covers, so that a set is never compared in another way than it is enforced. All of it is a stranger's text.
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from hutch.egress.learn import Learner
from hutch.egress.policy import INVALID, Boundaries, check, within
from hutch.errors import BadRequestError
from hutch.workers import reading

FILE = "hutch.worker.json"
PACKAGE = "package.json"
PYPROJECT = "pyproject.toml"
PLACES = (FILE, PACKAGE, PYPROJECT)
"""Files of a project that may declare something."""
MAX_FILE_BYTES = 1024 * 1024
MAX_DEPTH = 64
MAX_NAMES = 1000
MAX_RANGES = 256
MAX_OAUTH_HOSTS = 50
MAX_REFUSED = 100
"""Refused destinations that are kept of a run."""
MAX_NAME = 253
PLAIN_HTTP = "plaintextHttp"


class Destinations(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True):
    """What may be reached: names (patterns), ranges of addresses, and whether plain HTTP is spoken to the names."""

    allow: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    plaintext_http: bool = False

    def policy(self) -> dict[str, Any]:
        """As a network policy; nothing else is reached."""
        if not self.allow and not self.subnets:
            return {"mode": "deny-all"}
        found: dict[str, Any] = {"allow": {name: [] for name in self.allow}}
        if self.subnets:
            found["subnets"] = {"allow": list(self.subnets)}
        if self.plaintext_http:
            found["defaults"] = {"plaintextHttp": True}
        return found

    def items(self) -> list[str]:
        """All of it in words, as differences are told."""
        return [*self.allow, *self.subnets, *([PLAIN_HTTP] if self.plaintext_http else [])]


EVERYTHING = Destinations(allow=("*",))
"""What holds where nothing is declared."""
NOTHING = Destinations()


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What a project declares. `network` None: nothing. `oauth`: the hosts that take tokens, by keys of OAuth capabilities."""

    network: Destinations | None = None
    oauth: dict[str, tuple[str, ...]] = {}


class Difference(msgspec.Struct, frozen=True):
    """What one set reaches that another does not, and the other way round."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """As a build's log shows it."""
        return [f"network  + {item}" for item in self.added] + [f"network  - {item}" for item in self.removed]


# -- what a project says -----------------------------------------------------------------------------


def declared(files: Mapping[str, bytes], settings: Boundaries = Boundaries()) -> Declared:  # noqa: B008
    """What the files of a project declare, by name. `settings` say which private ranges the operator opened. Raises `ValueError`,
    whose text is a sentence."""
    found: dict[str, Declared] = {}
    for place in PLACES:
        content = files.get(place)
        section = _section(place, content) if content is not None else None
        if section is not None:
            found[place] = _read(place, section, settings)
    saying = [place for place, one in found.items() if one.network is not None or one.oauth]
    if len(saying) > 1:
        raise ValueError(f"{' and '.join(saying)} both say what the worker may reach; say it in one of them.")
    return found[saying[0]] if saying else Declared()


def _section(place: str, content: bytes) -> Any:
    """The part that is meant for Hutch; None where there is none."""
    if place == PYPROJECT:
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"{place} has {len(content)} bytes; at most {MAX_FILE_BYTES} are read.")
        try:
            tool = tomllib.loads(content.decode()).get("tool")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place} is no TOML: {reading.shown(str(error), 200)}.") from error
        return tool.get("hutch") if isinstance(tool, dict) else None
    try:
        value = reading.load(content.removeprefix(b"\xef\xbb\xbf"), most_bytes=MAX_FILE_BYTES, most_depth=MAX_DEPTH)
    except ValueError as error:
        raise ValueError(f"{place} {error}.") from error
    if place == FILE:
        return value if value is not None else {}
    return value.get("hutch") if isinstance(value, dict) else None


def _read(place: str, section: Any, settings: Boundaries) -> Declared:
    if not isinstance(section, dict):
        raise ValueError(f"{place}: what is meant for Hutch should be an object.")
    network = section.get("network")
    oauth = section.get("oauth")
    try:
        return Declared(
            network=parse(network, settings) if network is not None else None, oauth=_oauth(oauth) if oauth is not None else {}
        )
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def parse(value: Any, settings: Boundaries = Boundaries()) -> Destinations:  # noqa: B008
    """A set from JSON, in the engine's spelling. Raises `ValueError` with what to fix."""
    if not isinstance(value, dict):
        raise ValueError('`network` should be an object such as {"allow": ["api.example.com"]}.')
    try:
        found = reading.convert(value, Destinations)
    except ValueError as error:
        raise ValueError(f"`network`: {error}.") from error
    if len(found.allow) > MAX_NAMES or len(found.subnets) > MAX_RANGES:
        raise ValueError(f"`network` may have {MAX_NAMES} names and {MAX_RANGES} subnets.")
    return _spelled(found, settings)


def _spelled(found: Destinations, settings: Boundaries) -> Destinations:
    try:
        text = check(found.policy(), role="bounds", settings=settings).text
    except BadRequestError as error:
        raise ValueError(f"`network` {_reason(error)}") from error
    policy: dict[str, Any] = msgspec.json.decode(text)
    ranges = policy.get("subnets", {}).get("allow", ())
    return Destinations(allow=tuple(policy.get("allow", ())), subnets=tuple(ranges), plaintext_http=found.plaintext_http)


def _reason(error: BadRequestError) -> str:
    return error.message.removeprefix(f"{INVALID}: ").removeprefix(INVALID).strip()


def _oauth(value: Any) -> dict[str, tuple[str, ...]]:
    try:
        found = reading.convert(value, dict[str, tuple[str, ...]])
    except ValueError as error:
        raise ValueError(f"`oauth`: {error}.") from error
    if len(found) > MAX_NAMES:
        raise ValueError(f"`oauth` may have {MAX_NAMES} keys.")
    for key, hosts in found.items():
        if len(hosts) > MAX_OAUTH_HOSTS:
            raise ValueError(f"`oauth` of {reading.shown(key)} may have {MAX_OAUTH_HOSTS} hosts.")
        for host in hosts:
            wrong = wrong_token_host(host)
            if wrong is not None:
                raise ValueError(f"`oauth` of {reading.shown(key)}: {wrong}")
    return {key: tuple(host.lower() for host in hosts) for key, hosts in found.items()}


def wrong_token_host(host: str) -> str | None:
    """Why a token can't be put into requests to a host, as a sentence; None where it can."""
    from hutch.workers.credentials import is_domain

    if not is_domain(host.lower()):
        return f"{reading.shown(host)} is no host: give a name of two labels or more, perhaps after `*.`."
    header = {"credential": "token", "placeholder": "TOKEN"}
    try:
        check({"allow": {host.lower(): [{"transform": [{"headers": {"authorization": header}}]}]}})
    except BadRequestError as error:
        return f"no network policy can have {reading.shown(host)}: {_reason(error)}"
    return None


# -- comparing ---------------------------------------------------------------------------------------


def outside(wanted: Destinations, bounds: Iterable[str], settings: Boundaries = Boundaries()) -> list[str]:  # noqa: B008
    """What of a set is not wholly within bounds (policies as JSON texts), in words. Plain HTTP is not asked about."""
    found: list[str] = []
    for text in bounds:
        items = check(wanted.policy(), settings=within(settings, [text])).outside
        found += [what for item in items for what in item.values() if what not in found]
    return found


def compare(old: Destinations, new: Destinations, settings: Boundaries = Boundaries()) -> Difference:  # noqa: B008
    """How the second differs from the first. `settings` say which private ranges the operator opened."""
    return Difference(_beyond(old, new, settings), _beyond(new, old, settings))


def _beyond(old: Destinations, new: Destinations, settings: Boundaries) -> tuple[str, ...]:
    found = outside(new, [check(old.policy(), role="bounds", settings=settings).text], settings)
    if new.plaintext_http and not old.plaintext_http and new.allow:
        found.append(PLAIN_HTTP)
    return tuple(found)


def inside(names: Sequence[str], wanted: Destinations) -> set[str]:
    """Which of some patterns a set covers wholly."""
    if not names:
        return set()
    asked = Destinations(allow=tuple(names))
    return set(names) - set(outside(asked, [check(wanted.policy(), role="bounds").text]))


def meet(one: Destinations, other: Destinations, settings: Boundaries = Boundaries()) -> Destinations:  # noqa: B008
    """What both reach, as far as the words of one of them say it."""
    kept: list[Destinations] = []
    for mine, theirs in ((one, other), (other, one)):
        beyond = set(_beyond(theirs, mine, settings))
        kept.append(
            Destinations(
                allow=tuple(name for name in mine.allow if name not in beyond),
                subnets=tuple(text for text in mine.subnets if text not in beyond),
                plaintext_http=one.plaintext_http and other.plaintext_http,
            )
        )
    return together(kept)


# -- what was seen -----------------------------------------------------------------------------------


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A destination that a run did not reach, why, and how often it tried."""

    name: str
    reason: str
    count: int


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did with the network. `partial`: there was more than is kept."""

    used: Destinations = NOTHING
    refused: tuple[Refused, ...] = ()
    partial: bool = False


def seen(records: Iterable[Mapping[str, Any]]) -> Seen:
    """The destinations of audit records; their names are the guest's words."""
    learner, counts, partial = Learner(), Counter[tuple[str, str]](), False
    for record in records:
        if record.get("decision") in ("deny", "revoked"):
            what = (_named(record), str(record.get("reason", ""))[:64])
            if what in counts or len(counts) < MAX_REFUSED:
                counts[what] += 1
            else:
                partial = True
            continue
        try:
            learner.add(record)
        except BadRequestError:
            partial = True
    return Seen(
        used=_learned(learner),
        refused=tuple(Refused(name=name, reason=reason, count=count) for (name, reason), count in sorted(counts.items()) if name),
        partial=partial,
    )


def _named(record: Mapping[str, Any]) -> str:
    name = record.get("name") or record.get("origDst") or record.get("dst")
    if not isinstance(name, str):
        return ""
    return "".join(letter if " " < letter < "\x7f" else "?" for letter in name[:MAX_NAME])


def _learned(learner: Learner) -> Destinations:
    policy = learner.learned(paths=False).policy
    plain = bool(policy.get("defaults", {}).get("plaintextHttp"))
    return Destinations(
        allow=tuple(policy.get("allow", ())),
        subnets=tuple(policy.get("subnets", {}).get("allow", ())),
        plaintext_http=plain,
    )


def together(sets: Iterable[Destinations]) -> Destinations:
    """The union, in order; as much of it as one policy holds."""
    names: set[str] = set()
    ranges: set[str] = set()
    plain = False
    for one in sets:
        names.update(one.allow)
        ranges.update(one.subnets)
        plain |= one.plaintext_http
    ordered = sorted(ranges, key=lambda text: (":" in text, ipaddress.ip_network(text)))
    return Destinations(
        allow=tuple(sorted(names)[:MAX_NAMES]), subnets=tuple(ordered[:MAX_RANGES]), plaintext_http=plain and bool(names)
    )


def refusals(all_of: Iterable[Seen]) -> list[Refused]:
    """Of several runs, most often first."""
    counts: Counter[tuple[str, str]] = Counter()
    for one in all_of:
        for item in one.refused:
            counts[(item.name, item.reason)] += item.count
    return [Refused(name=name, reason=reason, count=count) for (name, reason), count in counts.most_common(MAX_REFUSED)]
