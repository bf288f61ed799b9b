"""What sandboxes used, as the API answers it: totals, receipts, sums, exports."""

from __future__ import annotations

import base64
import csv
import io
import json
from typing import Any

import pytest

from hutch.api.usage import MAX_RULES
from hutch.host.protocol import RuleTraffic
from hutch.metering import receipts
from hutch.metering.prices import DEFAULT
from hutch.metering.quantities import Quantities
from tests.api.conftest import Api

OWN = "/api/hutch/v1"
DAY_MS = 86_400_000


async def keys(api: Api) -> dict[str, bytes]:
    """The server's public keys, as anybody gets them."""
    answer = (await api.client("").get(f"{OWN}/receipt-keys")).json()
    return {key["key_id"]: base64.urlsafe_b64decode(key["public_key"] + "=") for key in answer["keys"]}


async def test_live_usage_is_the_hosts_and_final_usage_that_of_windows(api: Api) -> None:
    session = (await api.create(name="one"))["session"]["id"]
    api.host.used[session] = Quantities(active_cpu_us=7, memory_byte_seconds=8, memory_peak_bytes=9, creations=1)
    live = (await api.http.get(f"{OWN}/sandboxes/one/usage")).json()
    assert (live["active_cpu_us"], live["memory_peak_bytes"], live["creations"], live["final"]) == (7, 9, 1, False)
    # A window that was written while its session still runs is in what the host says.
    await api.host.until_delivered(await api.host.close_window(session, active_cpu_us=5, creations=1))
    assert (await api.http.get(f"{OWN}/sandboxes/one/usage")).json() == live
    await api.http.post(f"/v2/sandboxes/sessions/{session}/stop")
    await api.host.until_delivered(await api.host.close_window(session, final=True, active_cpu_us=6, egress_bytes=4))
    api.host.forget(session)
    final = (await api.http.get(f"{OWN}/sandboxes/one/usage")).json()
    assert (final["active_cpu_us"], final["egress_bytes"], final["creations"]) == (11, 4, 1)
    assert final["amount_nano"] == DEFAULT.amount_nano(Quantities(**{name: final[name] for name in Quantities.__struct_fields__}))
    assert (final["currency"], final["price_table"]) == (DEFAULT.currency, DEFAULT.version)


async def test_what_passed_by_rule_is_the_hosts_while_it_lives_and_kept_when_it_ended(api: Api) -> None:
    session = (await api.create(name="one"))["session"]["id"]
    assert (await api.http.get(f"{OWN}/sandboxes/one/usage")).json()["network"] == []
    api.host.passed[session] = {
        "00ff": RuleTraffic(sent_bytes=1, received_bytes=2, connections=3, requests=4),
        "": RuleTraffic(sent_bytes=1000),
        "*": RuleTraffic(requests=5),
    }
    first = {"rule": "00ff", "sent_bytes": 1, "received_bytes": 2, "connections": 3, "requests": 4}
    without = {"rule": None, "sent_bytes": 1000, "received_bytes": 0, "connections": 0, "requests": 0}
    others = {"rule": "*", "sent_bytes": 0, "received_bytes": 0, "connections": 0, "requests": 5}
    live = (await api.http.get(f"{OWN}/sandboxes/one/usage")).json()["network"]
    assert live == [without, first, others]
    await api.http.post(f"/v2/sandboxes/sessions/{session}/stop")
    last = await api.host.close_window(session, final=True)
    await api.host.until_delivered(last)
    api.host.forget(session)
    assert (await api.http.get(f"{OWN}/sandboxes/one/usage")).json()["network"] == live
    # A receipt is about what may cost something.
    assert "network" not in (await api.http.get(f"{OWN}/sandboxes/one/receipt")).json()["usage"]


async def test_rules_without_end_are_so_many_lines_and_their_sum(api: Api) -> None:
    session = (await api.create(name="one"))["session"]["id"]
    api.host.passed[session] = {f"{number:016x}": RuleTraffic(sent_bytes=number) for number in range(1, MAX_RULES + 3)}
    lines = (await api.http.get(f"{OWN}/sandboxes/one/usage")).json()["network"]
    assert len(lines) == MAX_RULES + 1
    assert (lines[0]["sent_bytes"], lines[-1]["rule"], lines[-1]["sent_bytes"]) == (MAX_RULES + 2, "*", 1 + 2)


async def test_a_receipt_is_signed_and_computed_again_by_anybody(api: Api) -> None:
    session = (await api.create(name="one", persistent=False))["session"]["id"]
    await api.http.post(f"/v2/sandboxes/sessions/{session}/stop")
    used = {"active_cpu_us": 5_000_000, "memory_byte_seconds": 10**12, "egress_bytes": 10**8, "creations": 1}
    await api.host.until_delivered(await api.host.close_window(session, final=True, **used))
    for path, subject in (
        (f"{OWN}/sandboxes/one/receipt", {"kind": "sandbox", "sandbox": "one"}),
        (f"{OWN}/sessions/{session}/receipt", {"kind": "session", "session_id": session}),
    ):
        answer = await api.http.get(path)
        receipt = receipts.parse(answer.content)
        receipts.verify(receipt, await keys(api))
        assert subject.items() <= receipt["subject"].items()
        assert receipt["subject"]["final"] is True
        assert receipt["amount_nano"] == DEFAULT.amount_nano(Quantities(**used)) > 0
        assert used.items() <= receipt["usage"].items()
    await api.http.delete("/v2/sandboxes/one")
    assert (await api.http.get(f"{OWN}/sandboxes/one/receipt")).status_code == 404
    assert (await api.http.get(f"{OWN}/sessions/{session}/receipt")).json()["usage"]["active_cpu_us"] == 5_000_000


async def test_a_command_has_a_receipt_of_its_own(api: Api) -> None:
    session = (await api.create(name="one"))["session"]["id"]
    started = await api.http.post(f"/v2/sandboxes/sessions/{session}/cmd", json={"command": "echo", "args": ["hello"]})
    command = started.json()["command"]["id"]
    api.host.used[session] = Quantities(active_cpu_us=2_000_000, egress_bytes=10**6)
    receipt = receipts.parse((await api.http.get(f"{OWN}/sessions/{session}/commands/{command}/receipt")).content)
    receipts.verify(receipt, await keys(api))
    subject = {"kind": "command", "session_id": session, "command_id": command, "overlapped": False}
    assert subject.items() <= receipt["subject"].items()
    assert receipt["amount_nano"] == DEFAULT.amount_nano(api.host.used[session])
    stranger = await api.tenant("strangers")
    assert (await stranger.http.get(f"{OWN}/sessions/{session}/commands/{command}/receipt")).status_code == 404
    for wrong in ("cmd_" + "a" * 26, "cmd_'; drop", "cmd_" + "a" * 5000, "x", "%00"):
        refused = await api.http.get(f"{OWN}/sessions/{session}/commands/{wrong}/receipt")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")


async def test_windows_are_taken_once_over_a_lost_connection(api: Api) -> None:
    session = (await api.create(name="one"))["session"]["id"]
    first = await api.host.close_window(session, active_cpu_us=5)
    await api.host.until_delivered(first)
    api.host.drop_connections()
    # The same number again, as after a host that did not hear that it was delivered.
    await api.host.tell(first)
    last = await api.host.close_window(session, final=True, active_cpu_us=6)
    await api.host.until_delivered(last)
    api.host.forget(session)
    assert (await api.http.get(f"{OWN}/sandboxes/one/usage")).json()["active_cpu_us"] == 11


async def test_metrics_sum_what_was_written_down(api: Api) -> None:
    session = (await api.create(name="one"))["session"]["id"]
    await api.host.close_window(session, active_cpu_us=1_500_000, egress_bytes=7, creations=1)
    await api.host.until_delivered(
        await api.host.close_window(
            session,
            active_cpu_us=500_000,
            memory_byte_seconds=3,
            gateway_cpu_us=250_000,
            startup_cpu_us=100_000,
            disk_byte_seconds=9,
        )
    )
    metrics = (await api.http.get("/metrics")).text.splitlines()
    assert any(line.startswith('hutch_platform_cpu_seconds_total{component="api"} ') for line in metrics)
    for line in (
        "hutch_usage_windows_total 2.0",
        "hutch_usage_active_cpu_seconds_total 2.0",
        "hutch_usage_memory_byte_seconds_total 3.0",
        'hutch_usage_interface_bytes_total{direction="egress"} 7.0',
        "hutch_usage_creations_total 1.0",
        "hutch_usage_gateway_cpu_seconds_total 0.25",
        "hutch_usage_startup_cpu_seconds_total 0.1",
        "hutch_usage_disk_byte_seconds_total 9.0",
        'hutch_platform_cpu_seconds_total{component="host"} 1.5',
        'hutch_platform_cpu_seconds_total{component="gateway"} 0.5',
    ):
        assert line in metrics


async def report(api: Api, **query: object) -> dict[str, Any]:
    answer = await api.http.get(f"{OWN}/usage", params={name: str(value) for name, value in query.items()})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_usage_is_summed_by_day_sandbox_and_tag(api: Api) -> None:
    now = api.services.clock()
    one = (await api.create(name="one", tags={"stage": "test"}))["session"]["id"]
    two = (await api.create(name="two"))["session"]["id"]
    today = now // DAY_MS * DAY_MS
    await api.host.close_window(one, at_ms=today - 1, active_cpu_us=1)
    await api.host.close_window(one, at_ms=today, active_cpu_us=10)
    await api.host.until_delivered(await api.host.close_window(two, at_ms=today, active_cpu_us=100))
    days = await report(api, **{"from": today - DAY_MS, "to": today + DAY_MS})
    assert [group["usage"]["active_cpu_us"] for group in days["groups"]] == [1, 110]
    assert days["total"]["active_cpu_us"] == 111
    assert len(days["groups"][0]["key"]) == len("2026-11-26")
    boxes = await report(api, group_by="sandbox")
    assert {group["key"]: group["usage"]["active_cpu_us"] for group in boxes["groups"]} == {"one": 11, "two": 100}
    tags = await report(api, group_by="tag", tag="stage")
    assert {group["key"]: group["usage"]["active_cpu_us"] for group in tags["groups"]} == {"test": 11, None: 100}
    assert (await report(api, group_by="worker"))["groups"] == []
    assert (await report(api, **{"from": "2020-01-01", "to": "2020-02-01T00:00:00+01:00"}))["groups"] == []


async def test_exports_have_a_row_for_each_group_and_nothing_that_a_spreadsheet_computes(api: Api) -> None:
    session = (await api.create(name="-one", tags={"t": '=HYPERLINK("http://evil.test")'}))["session"]["id"]
    await api.host.until_delivered(await api.host.close_window(session, active_cpu_us=3_600_000_000, creations=1))
    plain = await api.http.get(f"{OWN}/usage", params={"group_by": "sandbox", "format": "csv"})
    assert plain.headers["content-type"] == "text/csv; charset=utf-8"
    [row] = csv.DictReader(io.StringIO(plain.text))
    assert (row["key"], row["active_cpu_us"], row["amount_nano"]) == ("'-one", "3600000000", "128000600")
    tagged = await api.http.get(f"{OWN}/usage", params={"group_by": "tag", "tag": "t", "format": "csv"})
    assert next(csv.DictReader(io.StringIO(tagged.text)))["key"].startswith("'=")
    focus = list(
        csv.DictReader(io.StringIO((await api.http.get(f"{OWN}/usage", params={"group_by": "sandbox", "format": "focus"})).text))
    )
    assert sum(float(row["BilledCost"]) for row in focus) == pytest.approx(0.1280006)
    assert {row["BillingCurrency"] for row in focus} == {"USD"}
    assert {row["SkuId"]: row["ConsumedQuantity"] for row in focus}["active_cpu_us"] == "3600000000"


@pytest.mark.parametrize(
    "query",
    [
        "from=x",
        "to=-1",
        "from=2026-13-01",
        "from=9" + "9" * 40,
        "from=2&to=1",
        "from=1970-01-01&to=2026-01-01",
        "group_by=team",
        "group_by=tag",
        "tag=stage",
        "group_by=tag&tag=%00",
        "format=xml",
        "from=%ff",
        "from=0001-01-01",
    ],
)
async def test_a_report_that_can_not_be_meant_is_refused(api: Api, query: str) -> None:
    refused = await api.http.get(f"{OWN}/usage?{query}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_request")


async def test_strangers_see_nothing(api: Api) -> None:
    session = (await api.create(name="one"))["session"]["id"]
    await api.host.until_delivered(await api.host.close_window(session, active_cpu_us=5))
    stranger = await api.tenant("strangers")
    for path in ("sandboxes/one/usage", "sandboxes/one/receipt", f"sessions/{session}/receipt"):
        assert (await stranger.http.get(f"{OWN}/{path}")).status_code == 404
        assert (await api.client("").get(f"{OWN}/{path}")).status_code == 401
    assert (await stranger.http.get(f"{OWN}/usage")).json()["groups"] == []
    assert (await api.client("").get(f"{OWN}/price-table")).status_code == 401
    table = (await stranger.http.get(f"{OWN}/price-table")).json()
    assert table["rates"]["active_cpu_us"] == {"nano": 128_000_000, "per": 3_600_000_000}


@pytest.fixture
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if request.node.name != "test_prices_are_configured":
        return {}
    table = tmp_path_factory.mktemp("prices") / "prices.json"
    table.write_text(json.dumps({"version": "ours-1", "currency": "EUR", "rates": {"creations": {"nano": 7, "per": 1}}}))
    return {"HUTCH_BILLING__PRICES": str(table)}


async def test_prices_are_configured(api: Api) -> None:
    session = (await api.create(name="one"))["session"]["id"]
    api.host.used[session] = Quantities(active_cpu_us=10**12, creations=1)
    used = (await api.http.get(f"{OWN}/sandboxes/one/usage")).json()
    assert (used["amount_nano"], used["currency"], used["price_table"]) == (7, "EUR", "ours-1")
