"""`hutch policy`: `check` needs no server, and nothing that a policy holds is shown; the others against the real API over a fake
host."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Api
from tests.cli.conftest import AsyncHutch, Ran, run_hutch

NOWHERE = {"PATH": os.environ["PATH"]}
SECRET = "CANARY-1f0c88a2b9"
POLICY = {
    "allow": {
        "api.test": [
            {
                "match": {"path": {"startsWith": "/v1"}},
                "transform": [{"headers": {"authorization": {"credential": "KEY", "placeholder": "TOKEN"}, "x-lit": SECRET}}],
            }
        ]
    }
}


def check(*arguments: str, policy: Any = POLICY, stdin: bytes = b"", **more: str) -> Ran:
    text = policy if isinstance(policy, str) else json.dumps(policy)
    done = run_hutch("policy", "check", text, *arguments, environment=NOWHERE | more, stdin=stdin)
    assert SECRET not in done.out + done.err
    assert "Traceback" not in done.err
    return done


def test_a_policy_is_described_and_its_warnings_are_remarks() -> None:
    done = check()
    assert done.code == 0
    assert "custom" in done.out
    assert "$TOKEN for KEY" in done.out
    assert "prefix_without_slash" in done.err
    shown = json.loads(check("--json").out)
    assert shown["policy"]["credentials"] == ["KEY"]
    assert "text" not in shown["policy"]
    assert shown["explanation"] is None


def test_a_policy_comes_from_a_file_standard_input_or_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(POLICY))
    same = {check("--json").out, check("--json", policy=str(file)).out, check("--json", policy="-", stdin=file.read_bytes()).out}
    assert len(same) == 1
    assert "deny-all" in check(policy="deny-all").out
    assert "deny-all" in check(policy='"deny-all"').out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--url", "https://api.test/v1/x"], 0, "inject"),
        (["--url", "https://api.test/v1/x", "-H", "authorization: Bearer $TOKEN"], 0, "KEY"),
        (["--url", "https://api.test/v1/x", "--missing", "KEY"], 1, "credential_missing"),
        (["--url", "https://api.test/other"], 0, "pass_unmatched"),
        (["--url", "https://api.test/other", "--header", "x: $TOKEN"], 1, "placeholder_misuse"),
        (["--url", "https://api.test", "--method", "TRACE"], 1, "method_deny"),
        (["--url", "https://evil.test"], 1, "domain_deny"),
        (["--url", "https://api.test", "--address", "10.0.0.1"], 1, "hard_deny"),
        (["--url", "https://api.test", "--bounds", '{"allow": ["b.test"]}'], 1, "domain_deny"),
    ],
)
def test_a_request_is_explained_and_a_refusal_is_1(arguments: list[str], code: int, said: str) -> None:
    done = check(*arguments)
    assert (done.code, said in done.out) == (code, True), done
    explained = json.loads(check("--json", *arguments).out)["explanation"]
    assert (explained["decision"] == "deny") is bool(code)


@pytest.mark.parametrize(
    ("policy", "arguments", "code"),
    [
        ({"allow": 5}, [], "invalid_network_policy"),
        ("{", [], "invalid_network_policy"),
        ("/no/such/file", [], "not_readable"),
        ("/", [], "not_readable"),
        ("x" * 5000, [], "not_readable"),
        (POLICY, ["--url", "gopher://x"], "bad_request"),
        (POLICY, ["--url", "https://api.test", "-H", "nocolon"], "bad_option"),
        (POLICY, ["--bounds", '{"allow": {"a.test": [{"forwardURL": "https://p.test"}]}}'], "invalid_network_policy"),
        (POLICY, ["--config", "/no/such/file"], "invalid_configuration"),
    ],
)
def test_what_can_not_be_meant_is_refused(policy: Any, arguments: list[str], code: str) -> None:
    done = check("--json", *arguments, policy=policy)
    assert done.code == 1
    assert done.out == ""
    assert json.loads(done.err)["error"]["code"] == code


def test_the_operators_ranges_count() -> None:
    policy = {"subnets": {"allow": ["10.20.0.0/24"]}}
    assert check(policy=policy).code == 1
    assert check(policy=policy, HUTCH_EGRESS__ALLOW_PRIVATE="10.20.0.0/16").code == 0
    bad = check(policy=policy, HUTCH_EGRESS__ALLOW_PRIVATE="127.0.0.0/8")
    assert (bad.code, "never be opened" in bad.err) == (1, True)


def test_what_lies_beyond_the_bounds_is_said() -> None:
    done = check("--bounds", '{"allow": ["*.corp.test"]}')
    assert "outside" in done.out
    assert "api.test" in done.out


def test_the_operators_policy_bounds_what_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "operator.json"
    file.write_text('{"mode": "allow-all", "block": ["api.test"]}')
    assert "outside" in check(HUTCH_EGRESS__POLICY=str(file)).out
    asked = ("--url", "https://api.test/v1/x")
    assert (check(*asked, HUTCH_EGRESS__POLICY=str(file)).code, check(*asked).code) == (1, 0)
    file.write_text('{"allow": 5}')
    broken = check("--json", HUTCH_EGRESS__POLICY=str(file))
    assert (broken.code, json.loads(broken.err)["error"]["code"]) == (1, "invalid_configuration")


# -- of sandboxes ------------------------------------------------------------------------------------


async def test_a_policy_is_given_at_create_read_and_replaced(api: Api, ask: AsyncHutch, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(POLICY))
    created = await ask("create", "--name", "one", "--network-policy", str(file))
    assert (created.code, created.out) == (0, "one\n")
    assert "prefix_without_slash" in created.err
    got = await ask("policy", "get", "one")
    assert got.code == 0
    shown = json.loads(got.out)
    assert (shown["mode"], shown["allowedDomains"], shown["hutch"]["generation"]) == ("custom", ["api.test"], 1)
    assert SECRET not in got.out + created.out + created.err
    # What is read is what can be applied again, values included.
    applied = await ask("policy", "apply", "one", "-", stdin=got.out.encode())
    assert (applied.code, applied.out) == (0, "generation 2, 0 connections closed, 0 kept\n"), applied
    session_id = (await api.http.get("/v2/sandboxes/one")).json()["session"]["id"]
    assert SECRET in str(api.host.networks[session_id].policy)
    api.host.flows = (3, 4)
    done = json.loads((await ask("policy", "apply", "--json", "one", "deny-all")).out)
    assert (done["mode"], done["hutch"]["closedFlows"], done["hutch"]["keptFlows"]) == ("deny-all", 3, 4)
    assert (await ask("policy", "apply", "--generation", "1", "one", "allow-all")).code == 1
    assert (await ask("policy", "apply", "--generation", "3", "one", "allow-all")).code == 0
    await api.create(name="two")
    assert json.loads((await ask("policy", "get", "two", "--json")).out) == {"mode": "allow-all"}


async def test_a_program_runs_under_its_policy(api: Api, ask: AsyncHutch) -> None:
    done = await ask("run", "--network-policy", "deny-all", "--", "echo", "hi")
    assert (done.code, done.out) == (0, "hi\n"), done
    (spec,) = api.host.specs.values()
    assert spec.network.policy == '{"mode":"deny-all"}'


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ("/no/such/file", "not_readable"),
        ("{", "invalid_network_policy"),
        ('{"allow": ["a.test"]}, "name": "injected", "x": {}', "invalid_network_policy"),
        ("[" * 10, "not_readable"),
        ('{"a":' * 5000, "invalid_network_policy"),
        ('{"allow": ["\udcff"]}', "invalid_network_policy"),
        ('"open"', "invalid_network_policy"),
    ],
)
async def test_what_is_no_policy_starts_and_changes_nothing(api: Api, ask: AsyncHutch, policy: str, code: str) -> None:
    await api.create(name="one", networkPolicy="deny-all")
    for arguments in (
        ["create", "--json", "--name", "two", "--network-policy", policy],
        ["run", "--json", "--network-policy", policy, "--", "echo"],
        ["policy", "apply", "--json", "one", policy],
        ["policy", "set", "--json", "--team", "default", policy],
    ):
        done = await ask(*arguments)
        assert json.loads(done.err)["error"]["code"] == code, done
        assert (done.code, done.out) == (125 if arguments[0] == "run" else 1, "")
    assert len(api.host.sessions) == 1
    assert "session.network" not in api.host.calls


async def test_a_policy_that_says_something_twice_starts_and_changes_nothing(api: Api, ask: AsyncHutch) -> None:
    """In a create it is the body that is refused, whatever is in it."""
    await api.create(name="one", networkPolicy="deny-all")
    twice = '{"allow": ["a.test"], "allow": ["b.test"]}'
    for code, arguments in (
        ("bad_request", ["create", "--json", "--name", "two", "--network-policy", twice]),
        ("bad_request", ["run", "--json", "--network-policy", twice, "--", "echo"]),
        ("invalid_network_policy", ["policy", "apply", "--json", "one", twice]),
        ("invalid_network_policy", ["policy", "set", "--json", "--team", "default", twice]),
    ):
        done = await ask(*arguments)
        assert json.loads(done.err)["error"]["code"] == code, done
    assert len(api.host.specs) == 1


async def test_sandboxes_that_are_not_there(ask: AsyncHutch) -> None:
    for name in ("nope", "../x", "a?b"):
        for arguments in (["get", name], ["apply", name, "deny-all"], ["learn", name]):
            assert (await ask("policy", *arguments)).code == 1


# -- learning ----------------------------------------------------------------------------------------


async def test_a_policy_is_learned_from_an_audit_of_many_pages(api: Api, ask: AsyncHutch) -> None:
    created = await api.create(name="one")
    seen = [
        {"kind": "http", "decision": "allow", "reason": "domain", "name": "a.test", "method": "GET", "path": f"/v1/{number}"}
        for number in range(1200)
    ]
    seen += [
        {"kind": "tls", "decision": "deny", "reason": "domain_deny", "name": "b.test"},
        {"kind": "tls", "decision": "allow", "reason": "domain", "name": "*.evil.test\x1b[31m"},
    ]
    api.host.audits[api.host.specs[created["session"]["id"]].sandbox_id] = [json.dumps(record) for record in seen]
    learned = await ask("policy", "learn", "one")
    assert json.loads(learned.out) == {"allow": ["a.test"]}
    assert "1 refusals (--include-denied" in learned.err
    assert "\x1b" not in learned.out + learned.err
    rule = {"match": {"path": {"startsWith": "/v1/"}, "method": ["GET"]}, "transform": []}
    narrow = await ask("policy", "learn", "--paths", "--include-denied", "--json", "one")
    assert json.loads(narrow.out) == {"allow": {"a.test": [rule], "b.test": []}, "defaults": {"unmatched": "deny"}}
    assert (await ask("policy", "apply", "one", "-", stdin=narrow.out.encode())).code == 0


# -- bounds ------------------------------------------------------------------------------------------


async def test_bounds_are_set_shown_and_removed(api: Api, ask: AsyncHutch, tmp_path: Path) -> None:
    block = {"mode": "allow-all", "block": ["evil.test"]}
    file = tmp_path / "bounds.json"
    file.write_text(json.dumps(block))
    session_id = (await api.create(name="one"))["session"]["id"]
    for place in (["--team", "default"], ["--project", "default"], ["--team", "default", "--project", api.own.project_id]):
        assert json.loads((await ask("policy", "show", *place)).out) is None
        done = await ask("policy", "set", *place, str(file))
        assert (done.code, done.out) == (0, "1 running sandboxes, 0 connections closed, 0 kept\n"), done
        assert json.loads(api.host.networks[session_id].bounds[-1]) == block
        shown = await ask("policy", "show", *place)
        assert json.loads(shown.out) == block
        again = json.loads((await ask("policy", "set", "--json", *place, "-", stdin=shown.out.encode())).out)
        assert (again["networkPolicy"], again["hutch"]["sessions"]) == (block, 1)
        assert (await ask("policy", "rm", *place)).code == 0
        assert api.host.networks[session_id].bounds == []
    warned = await ask("policy", "set", "--team", "default", '{"allow": ["a.test"]}')
    assert warned.err == ""
    assert "outside_bounds" in (await ask("policy", "set", "--project", "default", "allow-all")).err
    assert "outside_bounds" in (await ask("create", "--network-policy", '{"allow": ["b.test"]}')).err


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ([], "bad_option"),
        (["--team", "nobody"], "not_found"),
        (["--project", "nothing"], "not_found"),
        (["--team", "../x"], "bad_request"),
        (["--project", "a?b"], "bad_request"),
        (["--team", "nobody", "--project", "default"], "forbidden"),
    ],
)
async def test_bounds_of_nobody(ask: AsyncHutch, place: list[str], code: str) -> None:
    for arguments in (["set", "deny-all"], ["show"], ["rm"]):
        done = await ask("policy", arguments[0], "--json", *place, *arguments[1:])
        assert (done.code, json.loads(done.err)["error"]["code"]) == (1, code), done
