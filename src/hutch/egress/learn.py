"""A policy from what a sandbox did: the smallest that allows it.

    audit records ─▶ what was reached, or tried ─▶ a policy, and remarks about what it can't say

Run a program under `{"allow": {"*": []}, "defaults": {"inspect": "all"}}`, where every request is in the audit, and learn from
that. Names become exact patterns: nobody can tell from ten subdomains whether the eleventh is wanted. A flow without a name
becomes the range of its one address.

Records are hostile input. A guest chooses names, paths and methods, and may well hope that somebody applies what comes out of
this: `*.com` as a server name is no pattern here, a name that the engine would not take is left out, and what no policy opens
(private addresses, metadata, port 25) does not come in as a range. What is left out is counted and said.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hutch.egress.policy import Boundaries, check
from hutch.errors import BadRequestError

MAX_NAMES = 1000
MAX_RULES = 64
MAX_RANGES = 256
"""What the engine takes in one policy."""

PASSED = frozenset({"allow", "pass_unmatched", "inject", "forward", "respond"})
REFUSED = frozenset({"deny", "revoked"})
CURABLE = frozenset(
    "deny_all domain_deny address_deny subnet_deny no_name unmatched udp plaintext_http revoked rule_changed".split()
)
"""Reasons of refusals that another policy of the sandbox lifts. Others are not its to lift."""
NAMED_IN_NOTES = 5
FLOWS = frozenset({"tcp", "tls", "udp", "http", "revoke"})

_NAME = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PORT = re.compile(r":[0-9]{1,5}$")
_METHOD = re.compile(r"[A-Z][A-Z-]{0,31}")
_SEGMENT = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@-]{1,256}")
"""What a path segment may be made of to become part of a rule: nothing escaped, which may stand otherwise in a record."""

Path = tuple[str, str]
"""A test of a rule: `exact` or `startsWith`, and the text."""
ANY_PATH: Path = ("startsWith", "/")


@dataclass(frozen=True, slots=True)
class Learned:
    """A policy in request form, valid as it is, and remarks for whoever reads it."""

    policy: dict[str, Any]
    notes: tuple[str, ...]


def learn(records: Iterable[Mapping[str, Any]], *, paths: bool = False, include_denied: bool = False) -> Learned:
    """The smallest policy that allows what `records` say was done; with `include_denied` also what was refused, where a policy
    can allow it. With `paths`, names whose requests are in the audit are narrowed to the methods and first path segments seen.

    Reads the records once and keeps only what differs. Raises `BadRequestError` (`too_much_to_learn`) for more than one policy
    holds.
    """
    learner = Learner(include_denied=include_denied)
    for record in records:
        learner.add(record)
    return learner.learned(paths=paths)


@dataclass(slots=True)
class _Name:
    """What is known of one name. `opaque`: there were connections that nobody looked into."""

    opaque: bool = False
    requests: dict[Path, set[str]] = field(default_factory=dict)

    def ask(self, method: str, path: Path) -> None:
        if path not in self.requests and (ANY_PATH in self.requests or len(self.requests) >= MAX_RULES):
            # Too many to list: any path, with the methods that were seen.
            self.requests = {ANY_PATH: set().union(*self.requests.values())}
            path = ANY_PATH
        self.requests.setdefault(path, set()).add(method)

    def rules(self) -> list[dict[str, Any]]:
        """Rules that let through what was asked and change nothing, the narrow ones first."""
        ordered = sorted(self.requests.items(), key=lambda item: (item[0] == ANY_PATH, item[0]))
        return [
            {"match": {"path": {kind: text}, "method": sorted(methods)}, "transform": []} for (kind, text), methods in ordered
        ]


class Learner:
    """`learn` one record after the other: what records say, without repetition. Its size is bounded by what one policy holds."""

    def __init__(self, *, include_denied: bool = False) -> None:
        self._include_denied = include_denied
        self._names: dict[str, _Name] = {}
        self._looked_up: dict[str, None] = {}
        self._ranges: dict[str, bool] = {}
        """Ranges, and whether only an operator's setting opens them."""
        self._bad_names: set[str] = set()
        self._left_out: Counter[str] = Counter()
        self._plain = False
        self._virtual = False

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record in. Raises `BadRequestError`."""
        kind, decision = record.get("kind"), record.get("decision")
        if kind == "dns":
            self._add_question(record)
            return
        if not isinstance(kind, str) or kind not in FLOWS or not isinstance(decision, str):
            return
        if not self._counts(decision, record.get("reason")):
            return
        name = record.get("name")
        if name is None or name == "":
            self._add_address(record, passed=decision in PASSED)
        elif (found := self._named(name)) is not None:
            self._add_flow(found, kind, record)

    def _counts(self, decision: str, reason: object) -> bool:
        """Whether what a record is about belongs into the policy."""
        if decision in PASSED:
            return True
        if decision in REFUSED and isinstance(reason, str):
            if reason not in CURABLE:
                self._left_out["refusals that no policy of the sandbox lifts"] += 1
            elif self._include_denied:
                return True
            else:
                self._left_out["refusals (--include-denied takes them in)"] += 1
        return False

    def _add_question(self, record: Mapping[str, Any]) -> None:
        decision = record.get("decision")
        if not isinstance(decision, str) or not self._counts(decision, record.get("reason")):
            return
        name = self._valid(record.get("name"))
        if name is None:
            return
        if decision in REFUSED:
            self._entry(name)
        elif len(self._looked_up) < MAX_NAMES:
            self._looked_up[name] = None

    def _named(self, raw: object) -> _Name | None:
        name = self._valid(raw)
        return self._entry(name) if name is not None else None

    def _valid(self, raw: object) -> str | None:
        """A name that a policy may have and that can resolve. What only looks like a pattern or an address is none."""
        name = _PORT.sub("", raw.lower()).removesuffix(".") if isinstance(raw, str) else ""
        if name in self._names or name in self._looked_up:
            return name
        if len(name) <= 253 and name not in self._bad_names and _NAME.fullmatch(name) is not None:
            try:
                if not check({"allow": [name]}).warnings:
                    return name
            except BadRequestError:
                pass
            if len(self._bad_names) < MAX_NAMES:
                self._bad_names.add(name)
        self._left_out["records whose name is none, or never resolves"] += 1
        return None

    def _entry(self, name: str) -> _Name:
        if name not in self._names and len(self._names) >= MAX_NAMES:
            raise _too_much("names", MAX_NAMES)
        return self._names.setdefault(name, _Name())

    def _add_flow(self, name: _Name, kind: str, record: Mapping[str, Any]) -> None:
        if kind == "tcp":
            # Only an address that stands for a name tells the name of a flow that does not say it.
            self._virtual = name.opaque = True
        elif kind == "tls":
            name.opaque |= record.get("mode") == "splice"
        elif kind == "http":
            self._plain |= record.get("mode") == "plain" or record.get("reason") == "plaintext_http"
            self._add_request(name, record)

    def _add_request(self, name: _Name, record: Mapping[str, Any]) -> None:
        method, target = record.get("method"), record.get("path")
        if method is None and target is None:
            # It was refused before anybody read it.
            return
        if not isinstance(method, str) or not isinstance(target, str) or _METHOD.fullmatch(method) is None or target[:1] != "/":
            self._left_out["requests whose method or path no rule can name"] += 1
            return
        name.ask(method, _path(target))

    def _add_address(self, record: Mapping[str, Any], *, passed: bool) -> None:
        found = _range(record.get("origDst") or record.get("dst"))
        if found is None:
            self._left_out["flows whose address is none"] += 1
            return
        if found in self._ranges:
            return
        private = False
        if not _opens(found, Boundaries()):
            # It passed because the operator opened it. What was refused gives nobody a reason to believe that.
            private = passed and _opens(found, Boundaries(allow_private=(found,)))
            if not private:
                self._left_out["flows to addresses that no policy opens"] += 1
                return
        if len(self._ranges) >= MAX_RANGES:
            raise _too_much("addresses without a name", MAX_RANGES)
        self._ranges[found] = private

    # -- the policy ---------------------------------------------------------------------------------

    def learned(self, *, paths: bool) -> Learned:
        """The policy that all of it makes, and remarks."""
        notes = [f"left out: {count} {what}" for what, count in sorted(self._left_out.items())]
        if self._ranges:
            # Beside ranges only names of the policy resolve, and it may have been by such a name that an address was found.
            added = [name for name in self._looked_up if name not in self._names][: MAX_NAMES - len(self._names)]
            self._names |= {name: _Name(opaque=True) for name in added}
            notes += _note(added, "in the policy although they were only looked up: addresses without a name may come from them")
        if not self._names and not self._ranges:
            return Learned({"mode": "deny-all"}, (*notes, "nothing that was seen needs a network"))
        policy: dict[str, Any] = {}
        defaults: dict[str, Any] = {}
        rules = {name: self._names[name].rules() for name in sorted(self._names)} if paths else {}
        whole = [name for name, found in rules.items() if found and self._names[name].opaque]
        notes += _note(whole, "allowed whole, because some of their connections were not inspected")
        rules |= {name: [] for name in whole}
        any_path = [name for name, found in rules.items() if found and ANY_PATH in self._names[name].requests]
        notes += _note(any_path, "allowed with any path, because theirs are too many or can't be part of a rule")
        if any(rules.values()):
            policy["allow"] = rules
            defaults["unmatched"] = "deny"
        elif self._names:
            policy["allow"] = sorted(self._names)
        if self._ranges:
            policy["subnets"] = {"allow": sorted(self._ranges, key=_order)}
        if self._plain:
            defaults["plaintextHttp"] = True
            notes.append("plaintextHttp opens plain HTTP to all the names, not only to those that were reached by it")
        if defaults:
            policy["defaults"] = defaults
        if self._virtual:
            policy["dns"] = {"mode": "virtual"}
        opened = tuple(found for found, private in self._ranges.items() if private)
        check(policy, settings=Boundaries(allow_private=opened))
        return Learned(policy, tuple(notes))


def _note(names: Sequence[str], what: str) -> list[str]:
    """A remark about names, if there are any."""
    more = f" and {len(names) - NAMED_IN_NOTES} more" if len(names) > NAMED_IN_NOTES else ""
    return [f"{what}: {', '.join(names[:NAMED_IN_NOTES])}{more}"] if names else []


def _path(target: str) -> Path:
    """What a rule asks of a path like this one: its first segment, or all of it where it has only one."""
    path = re.split(r"[?#]", target, maxsplit=1)[0]
    segment, slash, _ = path[1:].partition("/")
    if not segment and not slash:
        return ("exact", "/")
    if _SEGMENT.fullmatch(segment) is None or segment in (".", ".."):
        return ANY_PATH
    return ("startsWith", f"/{segment}/") if slash else ("exact", f"/{segment}")


def _range(raw: object) -> str | None:
    """`ADDRESS:PORT` → the range of the one address."""
    if not isinstance(raw, str) or len(raw) > 64:
        return None
    try:
        return str(ipaddress.ip_network(ipaddress.ip_address(raw.rpartition(":")[0].strip("[]"))))
    except ValueError:
        return None


def _order(text: str) -> tuple[int, int]:
    network = ipaddress.ip_network(text)
    return network.version, int(network.network_address)


def _opens(text: str, settings: Boundaries) -> bool:
    """Whether a policy may have this range."""
    try:
        check({"subnets": {"allow": [text]}}, settings=settings)
    except BadRequestError:
        return False
    return True


def _too_much(what: str, most: int) -> BadRequestError:
    return BadRequestError(
        "too_much_to_learn",
        f"The audit has more than {most} {what}, the most that one policy holds. Write it by hand, with patterns such as "
        "*.example.com or wider ranges.",
    )
