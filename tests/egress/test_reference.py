"""Network policies as the reference of the vendor's API has them, statement by statement: what is taken and read back, what a
policy means, and the flows that only real packets show. Threats are in the other files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hutch.egress.policy import Question, check, explain
from hutch.errors import BadRequestError
from tests.egress.guest_tools import hello
from tests.egress.world import API, CANARY, EVIL, SHARED, World

INJECT: dict[str, Any] = {"transform": [{"headers": {"authorization": f"Bearer {CANARY}"}}]}
FORWARD = {"forwardURL": "https://proxy.test/in"}
BLOCK = {"response": {"statusCode": 403}}
EVERYTHING = {"subnets": {"allow": ["0.0.0.0/0", "::/0"]}}


def rules(*given: dict[str, Any]) -> dict[str, Any]:
    return {"allow": {"a.test": list(given)}}


# -- §14.1: what is taken ----------------------------------------------------------------------------


@pytest.mark.section("14.1", "14.2", "14.3")
@pytest.mark.parametrize(
    ("policy", "read"),
    [
        ({"mode": "allow-all"}, {"mode": "allow-all"}),
        ({"mode": "deny-all"}, {"mode": "deny-all"}),
        ({}, {"mode": "custom"}),
        ({"allow": []}, {"mode": "custom"}),
        ({"allow": {}, "subnets": {}}, {"mode": "custom"}),
        (
            {"allow": ["example.com", "*.example.org", "www.*.com", "*"]},
            {"mode": "custom", "allowedDomains": ["example.com", "*.example.org", "www.*.com", "*"]},
        ),
        ({"allow": {"example.com": [], "*": []}}, {"mode": "custom", "allowedDomains": ["example.com", "*"]}),
        (
            {"subnets": {"allow": ["1.1.1.1/32"], "deny": ["192.0.2.0/24", "10.0.0.0/8"]}},
            {"mode": "custom", "allowedCIDRs": ["1.1.1.1/32"], "deniedCIDRs": ["192.0.2.0/24", "10.0.0.0/8"]},
        ),
        (EVERYTHING, {"mode": "custom", "allowedCIDRs": ["0.0.0.0/0", "::/0"]}),
        # What the vendor's live scenario sends: a domain with rules after one without.
        (
            {"allow": {"example.com": [], "api.github.com": [{"transform": [{"headers": {"X-Sandbox-Live": "configured"}}]}]}},
            {
                "mode": "custom",
                "allowedDomains": ["example.com", "api.github.com"],
                "injectionRules": [{"domain": "api.github.com", "headerNames": ["X-Sandbox-Live"]}],
            },
        ),
        (
            rules(
                {"match": {"path": {"startsWith": "/v1/"}, "method": ["GET"]}, **INJECT},
                {"match": {"headers": [{"key": {"exact": "x"}}]}, **FORWARD},
                BLOCK,
            ),
            {
                "mode": "custom",
                "allowedDomains": ["a.test"],
                "injectionRules": [
                    {
                        "domain": "a.test",
                        "headerNames": ["authorization"],
                        "match": {"path": {"startsWith": "/v1/"}, "method": ["GET"]},
                    }
                ],
                "forwardRules": [
                    {
                        "domain": "a.test",
                        "forwardURL": "https://proxy.test/in",
                        "match": {"headers": [{"key": {"exact": "x"}}]},
                    }
                ],
                "responseRules": [{"domain": "a.test", "statusCode": 403}],
            },
        ),
        # The legacy form.
        (
            {
                "mode": "custom",
                "allowedDomains": ["b.test"],
                "allowedCIDRs": ["203.0.113.0/24"],
                "deniedCIDRs": ["203.0.113.7/32"],
                "injectionRules": [
                    {"domain": "a.test", "headers": {"authorization": "Bearer x"}, "match": {"path": {"exact": "/"}}}
                ],
            },
            {
                "mode": "custom",
                "allowedDomains": ["b.test", "a.test"],
                "allowedCIDRs": ["203.0.113.0/24"],
                "deniedCIDRs": ["203.0.113.7/32"],
                "injectionRules": [{"domain": "a.test", "headerNames": ["authorization"], "match": {"path": {"exact": "/"}}}],
            },
        ),
        (
            {"mode": "default-deny", "allowedDomains": ["a.test"]},
            {"mode": "custom", "allowedDomains": ["a.test"]},
        ),
        (
            {"mode": "default-allow", "deniedCIDRs": ["203.0.113.0/24"]},
            {"mode": "custom", "allowedDomains": ["*"], "deniedCIDRs": ["203.0.113.0/24"]},
        ),
    ],
)
def test_every_form_is_taken_and_read_back(policy: dict[str, Any], read: dict[str, Any]) -> None:
    shown = check(policy).read_back
    assert {key: value for key, value in shown.items() if key != "hutch"} == read
    assert CANARY not in json.dumps(shown)
    assert next(iter(shown)) == "mode"


@pytest.mark.section("14.1")
@pytest.mark.parametrize(
    "rule",
    [
        {"match": {}, **BLOCK},
        {"match": {"path": {"exact": "/a"}}, **BLOCK},
        {"match": {"path": {"startsWith": "/a/"}}, **BLOCK},
        {"match": {"path": {"regex": r"^/a/\d+$"}}, **BLOCK},
        {"match": {"method": ["GET", "POST"]}, **BLOCK},
        {"match": {"queryString": [{"key": {"exact": "k"}, "value": {"regex": "v.*"}}, {"key": {"startsWith": "x"}}]}, **BLOCK},
        {"match": {"headers": [{"value": {"exact": "v"}}]}, **BLOCK},
        {"transform": [{"headers": {"a": "1-long-enough"}}, {"headers": {"b": "2-long-enough"}}]},
        {"transform": [{}]},
        {"forwardURL": "https://proxy.test"},
        {"forwardURL": "https://proxy.test:8443/a/b"},
        {"response": {"statusCode": 200}},
        {"response": {"statusCode": 599, "headers": {"x-a": "b"}, "body": "no", "contentType": "text/plain"}},
        {"response": {"statusCode": 204, "headers": {"x-a": "b"}}},
        {"response": {"statusCode": 304}},
        {"response": {"statusCode": 200, "contentType": "text/plain"}},
    ],
)
def test_every_kind_of_rule_is_taken(rule: dict[str, Any]) -> None:
    assert check(rules(rule)).intercepted == ("a.test",)


@pytest.mark.section("14.1", "14.2")
@pytest.mark.parametrize(
    ("policy", "pointer"),
    [
        ({"mode": "open"}, "/mode"),
        ({"allow": "a.test"}, "/allow"),
        ({"allow": [5]}, "/allow/0"),
        ({"allow": ["api*.x.test"]}, "/allow/0"),
        ({"allow": ["*x.test"]}, "/allow/0"),
        ({"allow": ["https://a.test"]}, "/allow/0"),
        ({"allow": [""]}, "/allow/0"),
        ({"subnets": {"allow": ["1.1.1.1/33"]}}, "/subnets/allow/0"),
        ({"subnets": {"deny": ["no"]}}, "/subnets/deny/0"),
        (rules({}), "/allow/a.test/0"),
        (rules({"match": {}}), "/allow/a.test/0"),
        (rules(INJECT | FORWARD), "/allow/a.test/0"),
        (rules(FORWARD | BLOCK), "/allow/a.test/0"),
        (rules(INJECT | FORWARD | BLOCK), "/allow/a.test/0"),
        (rules({"match": {"path": {}}, **BLOCK}), None),
        (rules({"match": {"path": {"exact": "/", "regex": "/"}}, **BLOCK}), None),
        (rules({"match": {"path": {"regex": "(?=a)"}}, **BLOCK}), None),
        (rules({"match": {"path": {"regex": r"(a)\1"}}, **BLOCK}), None),
        (rules({"match": {"path": "/a"}, **BLOCK}), None),
        (rules({"match": {"method": "GET"}, **BLOCK}), None),
        (rules({"response": {}}), None),
        (rules({"response": {"statusCode": 199}}), None),
        (rules({"response": {"statusCode": 600}}), None),
        (rules({"response": {"statusCode": "403"}}), None),
        (rules({"response": {"statusCode": 200, "body": "x"}}), "/allow/a.test/0/response/body"),
        *[
            (
                rules({"response": {"statusCode": status, "body": "x", "contentType": "text/plain"}}),
                "/allow/a.test/0/response/body",
            )
            for status in (204, 205, 304)
        ],
        *[
            (rules({"response": {"statusCode": 200, "headers": {name: "1"}}}), f"/allow/a.test/0/response/headers/{name}")
            for name in ("connection", "Content-Length", "transfer-encoding")
        ],
        (rules({"response": {"statusCode": 200, "headers": {"x-a": "1", "X-A": "2"}}}), "/allow/a.test/0/response/headers/X-A"),
        *[
            (rules({"forwardURL": url}), "/allow/a.test/0/forwardURL")
            for url in (
                "https://u@p.test",
                "https://u:p@p.test",
                "https://p.test/?q",
                "https://p.test/#f",
                "ftp://p.test",
                "p.test",
                "",
            )
        ],
    ],
)
def test_what_can_not_be_meant_is_refused_with_its_place(policy: dict[str, Any], pointer: str | None) -> None:
    with pytest.raises(BadRequestError) as refused:
        check(policy)
    assert (refused.value.status, refused.value.code) == (400, "invalid_network_policy")
    if pointer is not None:
        assert refused.value.details["pointer"] == pointer


@pytest.mark.section("14.1")
@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"allow": {"*": [INJECT]}}, "acknowledgeBroad"),
        ({"allow": {"*.com": [INJECT]}}, "acknowledgeBroad"),
        ({"subnets": {"allow": ["10.0.0.0/8"]}}, "closed to every sandbox"),
        (rules({"transform": [{"headers": {"host": "other.test"}}]}), "host"),
        (rules({"transform": [{"headers": {"connection": "long-enough"}}]}), "connection"),
        (rules({"forwardURL": "http://p.test"}), "https://"),
        ({"allow": ["a.test"], "unknown": 1}, "not known"),
    ],
)
def test_what_the_form_allows_and_nobody_should_do_is_refused_too(policy: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequestError, match=words):
        check(policy)
    broad = {"allow": {"*": [INJECT | {"acknowledgeBroad": True}]}}
    assert check(broad).read_back["injectionRules"] == [{"domain": "*", "headerNames": ["authorization"]}]
    for rule in (FORWARD, BLOCK):
        assert check({"allow": {"*": [rule]}}).intercepted == ("*",)


# -- §14.2: what it means ----------------------------------------------------------------------------


def decided(policy: dict[str, Any], url: str, **more: Any) -> str:
    """`allow`, `deny` and so on."""
    return explain([policy], Question(url, **more)).decision


@pytest.mark.section("14.1", "14.2")
@pytest.mark.parametrize(
    ("pattern", "covered", "not_covered"),
    [
        ("example.test", ["example.test", "EXAMPLE.Test"], ["a.example.test", "example.test.evil.test", "xexample.test"]),
        ("Example.TEST", ["example.test"], ["a.example.test"]),
        ("*.example.test", ["a.example.test", "b.a.example.test"], ["example.test", "xexample.test"]),
        ("www.*.test", ["www.api.test", "WWW.Api.test"], ["www.test", "www.a.b.test", "www.api.evil.test"]),
        ("*", ["a.test", "b.a.test"], []),
    ],
)
def test_patterns_cover_what_is_said(pattern: str, covered: list[str], not_covered: list[str]) -> None:
    forms: list[dict[str, Any]] = [{"allow": [pattern]}, {"allow": {pattern: []}}]
    for given in forms:
        assert {decided(given, f"https://{name}/") for name in covered} == {"allow"}
        assert {decided(given, f"https://{name}/") for name in not_covered} <= {"deny"}


@pytest.mark.section("14.2")
@pytest.mark.parametrize(
    "policy",
    [
        {"mode": "deny-all"},
        {},
        {"allow": {}},
        {"allow": []},
        {"subnets": {}},
        {"subnets": {"allow": []}},
        {"subnets": {"deny": ["203.0.113.0/24"]}},
        {"mode": "custom"},
        {"mode": "default-deny", "deniedCIDRs": ["203.0.113.0/24"]},
    ],
)
def test_nothing_that_is_allowed_is_nothing(policy: dict[str, Any]) -> None:
    for url in ("https://a.test/", "tcp://198.51.100.1:443", "ssh://203.0.113.9"):
        assert decided(policy, url) == "deny"
    found = explain([policy], Question("https://a.test/"))
    assert (found.stage, found.dns is not None and found.dns.decision) == ("dns", "refuse")


@pytest.mark.section("14.2")
def test_ranges_and_names_are_two_things() -> None:
    inside, outside = "198.51.100.7", "203.0.113.7"
    ranges = {"subnets": {"allow": ["198.51.100.0/24"], "deny": ["198.51.100.66/32"]}}
    # Whatever is spoken there, a denied part of it excepted.
    for url in (f"tcp://{inside}:1", f"ssh://{inside}", f"http://{inside}"):
        assert decided(ranges, url) == "allow"
    assert decided(ranges, "tcp://198.51.100.66:443") == "deny"
    assert decided(ranges, f"tcp://{outside}:443") == "deny"
    # Names do not narrow ranges, and ranges do not narrow names.
    both = {"allow": {"a.test": [INJECT]}, **ranges}
    assert decided(both, "https://other.test/", address=inside) == "allow"
    assert decided(both, "https://a.test/", address=outside) == "inject"
    # In a range nothing is looked at or added.
    found = explain([both], Question("https://a.test/", address=inside))
    assert (found.decision, found.mode, found.injected) == ("allow", "raw", ())
    # What is denied is denied to names as well, and opens nothing.
    denied = {"allow": ["a.test"], "subnets": {"deny": [f"{outside}/32"]}}
    assert decided(denied, "https://a.test/", address=outside) == "deny"
    assert decided(denied, "https://a.test/", address=inside) == "allow"
    assert decided(denied, "https://b.test/", address=inside) == "deny"
    everything = {"allow": ["a.test"], **EVERYTHING}
    assert decided(everything, "tcp://9.9.9.9:1") == "allow"
    assert decided(everything, "https://b.test/", address="9.9.9.9") == "allow"


@pytest.mark.section("14.2")
def test_names_resolve_where_they_are_allowed_or_only_ranges_are() -> None:
    def resolves(policy: dict[str, Any], name: str) -> bool:
        dns = explain([policy], Question(f"https://{name}/")).dns
        return dns is not None and dns.decision == "resolve"

    names = {"allow": ["a.test"]}
    assert (resolves(names, "a.test"), resolves(names, "b.test")) == (True, False)
    ranges = {"subnets": {"allow": ["198.51.100.0/24"]}}
    assert resolves(ranges, "anything.test")
    assert not resolves(names | ranges, "b.test")
    assert resolves({"mode": "allow-all"}, "anything.test")


@pytest.mark.section("14.2")
def test_the_first_rule_that_matches_decides() -> None:
    read, write = {"match": {"method": ["GET"]}, **INJECT}, {"match": {"method": ["PUT"]}, **FORWARD}
    policy = rules(read, write, {"match": {"path": {"startsWith": "/x/"}}, **BLOCK})
    assert decided(policy, "https://a.test/x/") == "inject"
    assert decided(policy, "https://a.test/x/", method="PUT") == "forward"
    assert decided(policy, "https://a.test/x/", method="POST") == "respond"
    # What no rule matches passes as it is: `match` alone never blocks.
    assert decided(policy, "https://a.test/", method="POST") == "pass_unmatched"
    # A rule without `match` hides those behind it, and a last one blocks the rest.
    assert decided(rules(BLOCK, INJECT), "https://a.test/") == "respond"
    assert decided(rules(read, BLOCK), "https://a.test/", method="DELETE") == "respond"
    assert decided(rules(FORWARD), "https://a.test/", method="DELETE") == "forward"


@pytest.mark.section("14.1", "14.2")
@pytest.mark.parametrize(
    ("match", "asked", "matches"),
    [
        ({"path": {"exact": "/a"}}, {"url": "/a"}, True),
        ({"path": {"exact": "/a"}}, {"url": "/A"}, False),
        ({"path": {"exact": "/a"}}, {"url": "/a?x=1"}, True),
        ({"path": {"startsWith": "/a/"}}, {"url": "/a/b"}, True),
        ({"path": {"regex": "^/[0-9]+$"}}, {"url": "/12"}, True),
        ({"path": {"regex": "^/[0-9]+$"}}, {"url": "/12x"}, False),
        ({"method": ["GET", "PUT"]}, {"method": "PUT"}, True),
        ({"method": ["GET", "PUT"]}, {"method": "POST"}, False),
        ({"method": ["get"]}, {"method": "GET"}, False),
        ({"method": ["GET"], "path": {"exact": "/a"}}, {"url": "/a"}, True),
        ({"method": ["GET"], "path": {"exact": "/a"}}, {"url": "/b"}, False),
        ({"queryString": [{"key": {"exact": "k"}, "value": {"exact": "v"}}]}, {"url": "/?k=v"}, True),
        ({"queryString": [{"key": {"exact": "k"}, "value": {"exact": "v"}}]}, {"url": "/?K=v"}, False),
        ({"queryString": [{"key": {"exact": "k"}, "value": {"exact": "v"}}]}, {"url": "/?k=V"}, False),
        ({"queryString": [{"key": {"exact": "k"}, "value": {"exact": "v"}}]}, {"url": "/?k=x&k=v"}, True),
        ({"queryString": [{"key": {"exact": "k"}}, {"key": {"exact": "l"}}]}, {"url": "/?k=1"}, False),
        ({"queryString": [{"key": {"exact": "k"}}, {"key": {"exact": "l"}}]}, {"url": "/?l=1&k=1"}, True),
        ({"headers": [{"key": {"exact": "X-Kind"}, "value": {"exact": "a"}}]}, {"headers": [("x-kind", "a")]}, True),
        ({"headers": [{"key": {"exact": "x-kind"}, "value": {"exact": "a"}}]}, {"headers": [("X-KIND", "A")]}, False),
        ({"headers": [{"key": {"exact": "x"}, "value": {"exact": "2"}}]}, {"headers": [("x", "1"), ("x", "2")]}, True),
        ({"headers": [{"key": {"exact": "x"}}, {"key": {"exact": "y"}}]}, {"headers": [("x", "1")]}, False),
        ({"headers": [{"key": {"exact": "x"}}], "method": ["GET"]}, {"headers": [("x", "1")], "method": "PUT"}, False),
    ],
)
def test_a_match_holds_when_all_that_it_names_does(match: dict[str, Any], asked: dict[str, Any], matches: bool) -> None:
    url = "https://a.test" + asked.get("url", "/")
    given = {key: value for key, value in asked.items() if key != "url"}
    assert (decided(rules({"match": match, **BLOCK}), url, **given) == "respond") is matches


@pytest.mark.section("14.2")
def test_without_rules_tls_is_not_ended_and_with_them_it_is() -> None:
    policy = {"allow": {"plain.test": [], "a.test": [INJECT]}}
    assert explain([policy], Question("https://plain.test/")).mode == "splice"
    assert explain([policy], Question("https://a.test/")).mode == "intercept"
    # Plain HTTP can't be allowed by a name.
    assert decided(policy, "http://plain.test/") == "deny"
    assert decided({"subnets": {"allow": ["198.51.100.0/24"]}}, "http://plain.test/", address="198.51.100.1") == "allow"
    assert decided(policy, "postgresql://plain.test") == "allow"
    # There rules are ignored.
    assert explain([policy], Question("postgresql://a.test")).injected == ()
    assert decided(policy, "postgresql://a.test") == "allow"


# -- §14.2 in packets --------------------------------------------------------------------------------

SSL_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x2f"
GSS_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x30"
STARTUP = b"\0\0\0\x14\0\3\0\0user\0guest\0\0"


@pytest.mark.root
@pytest.mark.section("14.2")
async def test_several_transforms_set_headers_over_the_clients_and_pin_the_host(outside: World) -> None:
    transform = [
        {"headers": {"Authorization": f"Bearer {CANARY}", "x-first": "first-value"}},
        {"headers": {"x-second": "second-value", "host": "api.test"}},
    ]
    guest = await outside.guest({"allow": {"api.test": [{"transform": transform}]}})
    ran = await guest.curl("-H", "authorization: mine", "-H", "X-SECOND: mine", "-H", "x-kept: kept", "https://api.test/p?q=1")
    assert ran.out.endswith("200"), ran
    head = outside.origins.seen().to("api.test")[-1]["data"].decode().lower()
    assert head.startswith("get /p?q=1 http/1.1\r\n")
    for line in (
        f"authorization: bearer {CANARY.lower()}",
        "x-first: first-value",
        "x-second: second-value",
        "host: api.test",
        "x-kept: kept",
    ):
        assert head.count(f"\r\n{line}\r\n") == 1, line
    assert "mine" not in head


@pytest.mark.root
@pytest.mark.section("14.2")
async def test_what_no_rule_matches_passes_as_it_is_and_a_response_is_answered_here(outside: World) -> None:
    rule = {"match": {"path": {"exact": "/blocked"}}, "response": {"statusCode": 451, "body": "no", "contentType": "text/plain"}}
    guest = await outside.guest({"allow": {"api.test": [{"match": {"path": {"exact": "/in"}}, **INJECT}, rule]}})
    ran = await guest.curl("-i", "https://api.test/blocked")
    assert ran.out.endswith("451"), ran
    assert "content-type: text/plain" in ran.out.lower()
    assert "\n\nno\n" in ran.out.replace("\r", "")
    assert outside.origins.seen().is_silent
    assert (await guest.curl("https://api.test/else")).out == "ok\n200"
    assert CANARY.encode() not in outside.origins.seen().data


@pytest.mark.root
@pytest.mark.section("14.2")
async def test_a_name_without_rules_is_not_looked_into(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"]})
    # The certificate is the server's own, and so is what is said inside, another host included.
    ran = await guest.curl("-H", "host: evil.test", "https://api.test/fronted")
    assert ran.out == "ok\n200", ran
    assert b"host: evil.test" in outside.origins.seen().data.lower()
    record = await guest.audited(kind="tls", name="api.test")
    assert (record["mode"], record["decision"]) == ("splice", "allow")


@pytest.mark.root
@pytest.mark.section("14.2")
async def test_what_has_no_name_passes_untouched_under_a_star_only(outside: World) -> None:
    outside.origins.script(f"{API}:22", first=b"SSH-2.0-test\r\n")
    named, star = await outside.guest({"allow": ["api.test"]}), await outside.guest({"allow": {"*": []}})
    for data, port in ((b"SSH-2.0-mine\r\n", 22), (b"*1\r\n$4\r\nPING\r\n", 8080), (hello(None), 443)):
        found = await named.connect(API if port != 8080 else EVIL, port, data)
        assert found.end == "ECONNRESET", data
    assert outside.origins.seen().is_silent
    found = await star.connect(API, 22, b"SSH-2.0-mine\r\n")
    assert found.data == b"SSH-2.0-test\r\n"
    await outside.origins.wait(lambda seen: b"SSH-2.0-mine\r\n" in seen.data, "the bytes did not arrive as they were")
    assert (await star.curl("-k", f"https://{SHARED}/")).out == "ok\n200"


@pytest.mark.root
@pytest.mark.section("14.2")
async def test_plain_http_needs_a_range(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"]})
    assert (await guest.curl("http://api.test/")).code == 56
    assert outside.origins.seen().is_silent
    await guest.policy({"allow": ["api.test"], "subnets": {"allow": [f"{API}/32"]}})
    outside.origins.script(f"{API}:80", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
    assert (await guest.curl("http://api.test/")).out == "hi\n200"


@pytest.mark.root
@pytest.mark.section("14.2")
async def test_postgres_is_let_through_by_name_once_it_asks_for_tls(outside: World) -> None:
    for policy in ({"allow": ["api.test"]}, {"allow": {"api.test": [INJECT]}}):
        guest = await outside.guest(policy)
        outside.origins.script(f"{API}:5432", b"S", raw=True, then_echo=True)
        greeting = hello("api.test", ["postgresql"])
        program = """
        stream = socket.create_connection((sys.argv[1], 5432))
        said = []
        for data in (bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])):
            stream.sendall(data)
            said.append(stream.recv(1).decode())
        greeting = bytes.fromhex(sys.argv[4])
        stream.sendall(greeting)
        back = b""
        while len(back) < len(greeting):
            back += stream.recv(65536)
        say([said, back == greeting])
        """
        ran = await guest.python(program, API, GSS_REQUEST.hex(), SSL_REQUEST.hex(), greeting.hex())
        # Encryption by GSSAPI is declined, TLS is agreed to, and then its bytes are the server's.
        assert ran.json() == [["N", "S"], True], ran
        seen = outside.origins.seen()
        assert seen.to(API)[-1]["data"] == SSL_REQUEST + greeting
        assert CANARY.encode() not in seen.data
        # Without TLS, or with the name of another, there is no way on.
        assert (await guest.connect(API, 5432, STARTUP)).end == "ECONNRESET"
        refused = await guest.python(program, API, GSS_REQUEST.hex(), SSL_REQUEST.hex(), hello("evil.test").hex())
        assert refused.code != 0


@pytest.mark.root
@pytest.mark.section("14.2")
async def test_deny_all_answers_nothing_and_allow_all_everything(outside: World) -> None:
    guest = await outside.guest("deny-all")
    ran = await guest.curl("https://api.test/")
    assert ran.code == 6, "could not resolve host"
    assert (await guest.connect(API, 443, hello("api.test"))).end == "ECONNRESET"
    assert outside.origins.seen().is_silent
    await guest.policy("allow-all")
    assert (await guest.curl("https://api.test/")).out == "ok\n200"
    assert (await guest.connect(EVIL, 8080, b"x" * 10 + b"\r\n\r\n")).end == "data"
