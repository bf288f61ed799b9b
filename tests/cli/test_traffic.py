"""`hutch traffic`, against the real API over a fake host."""

from __future__ import annotations

import json

from hutch.host.protocol import Tally, Traffic
from tests.api.conftest import Api
from tests.cli.conftest import AsyncHutch

RULE = "00112233445566ff"
TRAFFIC = Traffic(
    up_bytes=30,
    down_bytes=4,
    flows=2,
    egress_bytes=50,
    ingress_bytes=9,
    tallies={
        "a\nb\x1b[31m.test": Tally(denied=7),
        "api.test": Tally(connections=1, requests=3, injected=2, up_bytes=30, down_bytes=4),
        f"rule:{RULE}": Tally(requests=3, injected=2, up_bytes=30, down_bytes=4),
    },
)


async def test_payload_and_interface_come_first_then_names_then_rules(api: Api, ask: AsyncHutch) -> None:
    await api.create(name="one")
    api.host.traffic = TRAFFIC
    done = await ask("traffic", "one")
    assert done.code == 0, done
    assert "\x1b" not in done.out
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0] == ["about", "up", "down", "connections", "requests", "denied", "injected"]
    assert rows[1:4] == [
        ["payload", "30", "4", "-", "-", "-", "-"],
        ["interface", "50", "9", "-", "-", "-", "-"],
        ["api.test", "30", "4", "1", "3", "0", "2"],
    ]
    # What a guest put into a name is one line.
    assert rows[4][-6:] == ["0", "0", "0", "0", "7", "0"]
    assert rows[5:] == [["rule", RULE, "30", "4", "0", "3", "0", "2"]]


async def test_json_is_the_answer_of_the_server(api: Api, ask: AsyncHutch) -> None:
    await api.create(name="one")
    api.host.traffic = TRAFFIC
    shown = json.loads((await ask("traffic", "one", "--json")).out)
    assert shown == (await api.http.get("/hutch/v1/sandboxes/one/traffic")).json()
    assert {entry["name"] for entry in shown["names"]} == {"api.test", "a\nb\x1b[31m.test"}


async def test_a_sandbox_that_is_none_is_1(api: Api, ask: AsyncHutch) -> None:
    done = await ask("traffic", "none")
    assert (done.code, done.out) == (1, "")
    assert "none" in done.err
    assert json.loads((await ask("traffic", "../x", "--json")).err)["error"]["code"] == "not_found"
