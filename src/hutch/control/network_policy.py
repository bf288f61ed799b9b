"""The shape of network policies.

`check_policy` takes the request form (or the legacy one), checks its structure and returns it as given; `response_form` makes the
form that clients read back, in which header *values* never appear. Nothing here enforces anything: that is the gateway's
work, and while there is no gateway every sandbox refuses all traffic (`docs/compatibility.md`).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from urllib.parse import urlsplit

Policy = dict[str, Any]

MAX_DOMAINS = 1000
MAX_CIDRS = 1000
MAX_RULES = 100
_LABEL = r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?|\*)"
_DOMAIN = re.compile(rf"(?:\*|{_LABEL}(?:\.{_LABEL})*)", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOP_HEADERS = frozenset({"connection", "content-length", "transfer-encoding"})
_ACTIONS = ("transform", "forwardURL", "response")
_BODYLESS = frozenset({204, 205, 304})


class PolicyInvalid(ValueError):
    """What is wrong with a policy, as the end of a sentence."""


def check_policy(policy: Policy) -> Policy:
    """`policy` as given, if its structure is valid. Raises `PolicyInvalid`."""
    mode = policy.get("mode")
    if mode in ("allow-all", "deny-all"):
        return {"mode": mode}
    if mode in ("custom", "default-allow", "default-deny"):
        _check_legacy(policy)
        return {key: policy[key] for key in _LEGACY_KEYS if key in policy}
    if mode is not None:
        raise PolicyInvalid('should have a `mode` of "allow-all", "deny-all", "custom", "default-allow" or "default-deny"')
    _check_allow(policy.get("allow"))
    subnets = policy.get("subnets")
    if subnets is not None:
        if not isinstance(subnets, dict):
            raise PolicyInvalid("should have an object as `subnets`")
        for key in ("allow", "deny"):
            _check_cidrs(f"subnets.{key}", subnets.get(key))
    return {key: policy[key] for key in ("allow", "subnets") if policy.get(key) is not None}


_LEGACY_KEYS = ("mode", "allowedDomains", "allowedCIDRs", "deniedCIDRs", "injectionRules")


def response_form(policy: Policy) -> Policy:
    """The read-back form: modes, domains in request order, CIDRs, and rules with header names only."""
    mode = policy.get("mode")
    if mode in ("allow-all", "deny-all"):
        return {"mode": mode}
    form: Policy = {"mode": "custom"}
    if mode is not None:
        for key in ("allowedDomains", "allowedCIDRs", "deniedCIDRs"):
            if policy.get(key):
                form[key] = list(policy[key])
        rules = policy.get("injectionRules") or []
        if rules:
            form["injectionRules"] = [
                _injection(rule["domain"], list(rule.get("headers") or {}), rule.get("match")) for rule in rules
            ]
        return form
    allow = policy.get("allow") or {}
    domains = list(allow)
    if domains:
        form["allowedDomains"] = domains
    subnets = policy.get("subnets") or {}
    if subnets.get("allow"):
        form["allowedCIDRs"] = list(subnets["allow"])
    if subnets.get("deny"):
        form["deniedCIDRs"] = list(subnets["deny"])
    if isinstance(allow, dict):
        _add_rules(form, allow)
    return form


def _add_rules(form: Policy, allow: dict[str, list[Any]]) -> None:
    for domain, rules in allow.items():
        for rule in rules or []:
            match = rule.get("match")
            if "transform" in rule:
                names = [name for transform in rule["transform"] for name in transform.get("headers") or {}]
                form.setdefault("injectionRules", []).append(_injection(domain, names, match))
            elif "forwardURL" in rule:
                entry = {"domain": domain, "forwardURL": rule["forwardURL"]}
                form.setdefault("forwardRules", []).append(entry | ({"match": match} if match else {}))
            else:
                entry = {"domain": domain, "statusCode": rule["response"]["statusCode"]}
                form.setdefault("responseRules", []).append(entry)


def _injection(domain: str, names: list[str], match: object) -> Policy:
    return {"domain": domain, "headerNames": names} | ({"match": match} if match else {})


def _check_legacy(policy: Policy) -> None:
    for domain in _list("allowedDomains", policy.get("allowedDomains"), MAX_DOMAINS):
        _check_domain(domain)
    for key in ("allowedCIDRs", "deniedCIDRs"):
        _check_cidrs(key, policy.get(key))
    for rule in _list("injectionRules", policy.get("injectionRules"), MAX_RULES):
        if not isinstance(rule, dict):
            raise PolicyInvalid("should have objects in `injectionRules`")
        _check_domain(rule.get("domain"))
        _check_headers(rule.get("headers", {}))
        _check_match(rule.get("match"))


def _check_allow(allow: object) -> None:
    if allow is None:
        return
    if isinstance(allow, list):
        for domain in _list("allow", allow, MAX_DOMAINS):
            _check_domain(domain)
        return
    if not isinstance(allow, dict):
        raise PolicyInvalid("should have an array or an object as `allow`")
    if len(allow) > MAX_DOMAINS:
        raise PolicyInvalid(f"should NOT have more than {MAX_DOMAINS} domains in `allow`")
    for domain, rules in allow.items():
        _check_domain(domain)
        for rule in _list(f"allow.{domain}", rules, MAX_RULES):
            _check_rule(domain, rule)


def _check_rule(domain: str, rule: object) -> None:
    if not isinstance(rule, dict):
        raise PolicyInvalid(f"should have objects as rules of {domain!r}")
    actions = [action for action in _ACTIONS if rule.get(action) is not None]
    if len(actions) != 1:
        raise PolicyInvalid(f"should have exactly one of `transform`, `forwardURL` and `response` in each rule of {domain!r}")
    _check_match(rule.get("match"))
    if actions == ["transform"]:
        for transform in _list("transform", rule["transform"], MAX_RULES):
            if not isinstance(transform, dict):
                raise PolicyInvalid("should have objects in `transform`")
            _check_headers(transform.get("headers", {}))
    elif actions == ["forwardURL"]:
        _check_forward_url(rule["forwardURL"])
    else:
        _check_response(rule["response"])


def _check_forward_url(url: object) -> None:
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError("not a web URL")
    except ValueError as error:
        raise PolicyInvalid("should have an http:// or https:// URL as `forwardURL`") from error
    if parts.username or parts.password or parts.query or parts.fragment:
        raise PolicyInvalid("should have a `forwardURL` without user, password, query and fragment")


def _check_response(response: object) -> None:
    if not isinstance(response, dict):
        raise PolicyInvalid("should have an object as `response`")
    status = response.get("statusCode")
    if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 599:
        raise PolicyInvalid("should have a `response.statusCode` from 200 to 599")
    body = response.get("body")
    if body is not None and (not isinstance(body, str) or not isinstance(response.get("contentType"), str)):
        raise PolicyInvalid("should have a string as `response.body`, and `response.contentType` with it")
    if body is not None and status in _BODYLESS:
        raise PolicyInvalid(f"should NOT have a `response.body` with status {status}")
    headers = response.get("headers") or {}
    _check_headers(headers)
    names = [name.lower() for name in headers]
    if len(set(names)) != len(names) or _HOP_HEADERS.intersection(names):
        raise PolicyInvalid(
            "should NOT have repeated, `connection`, `content-length` or `transfer-encoding` headers in `response`"
        )


def _check_headers(headers: object) -> None:
    if not isinstance(headers, dict) or len(headers) > MAX_RULES:
        raise PolicyInvalid(f"should have objects of at most {MAX_RULES} entries as `headers`")
    for name, value in headers.items():
        if _HEADER_NAME.fullmatch(name) is None:
            raise PolicyInvalid(f"has an invalid header name {name[:64]!r}")
        if isinstance(value, str) and re.search(r"[\0\r\n]", value):
            raise PolicyInvalid(f"has a line break or NUL in the value of header {name!r}")
        if not isinstance(value, str | dict):
            raise PolicyInvalid(f"should have a string as value of header {name!r}")


def _check_match(match: object) -> None:
    if match is None:
        return
    if not isinstance(match, dict):
        raise PolicyInvalid("should have an object as `match`")
    if "path" in match:
        _check_matcher("match.path", match["path"])
    for method in _list("match.method", match.get("method"), MAX_RULES):
        if not isinstance(method, str):
            raise PolicyInvalid("should have strings in `match.method`")
    for key in ("queryString", "headers"):
        for item in _list(f"match.{key}", match.get(key), MAX_RULES):
            if not isinstance(item, dict):
                raise PolicyInvalid(f"should have objects in `match.{key}`")
            for part in ("key", "value"):
                if part in item:
                    _check_matcher(f"match.{key}.{part}", item[part])


def _check_matcher(where: str, matcher: object) -> None:
    if not isinstance(matcher, dict) or len(matcher) != 1 or not set(matcher) <= {"exact", "startsWith", "regex"}:
        raise PolicyInvalid(f"should have exactly one of `exact`, `startsWith` and `regex` in `{where}`")
    if not isinstance(next(iter(matcher.values())), str):
        raise PolicyInvalid(f"should have a string in `{where}`")


def _check_domain(domain: object) -> None:
    if not isinstance(domain, str) or len(domain) > 253 or _DOMAIN.fullmatch(domain) is None:
        raise PolicyInvalid(f"has an invalid domain {str(domain)[:64]!r}")


def _check_cidrs(where: str, cidrs: object) -> None:
    for cidr in _list(where, cidrs, MAX_CIDRS):
        try:
            if not isinstance(cidr, str):
                raise ValueError("not a string")
            ipaddress.ip_network(cidr, strict=False)
        except ValueError as error:
            raise PolicyInvalid(f"has an invalid CIDR {str(cidr)[:64]!r} in `{where}`") from error


def _list(where: str, value: object, limit: int) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise PolicyInvalid(f"should have an array as `{where[:128]}`")
    if len(value) > limit:
        raise PolicyInvalid(f"should NOT have more than {limit} items in `{where[:128]}`")
    return value
