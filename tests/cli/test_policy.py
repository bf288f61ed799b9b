"""`hutch policy check`: no server, and nothing that a policy holds is shown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Ran, run_hutch

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
