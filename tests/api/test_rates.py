"""How often a project may ask, and what answers say about it."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from hutch.api.rates import MOST_CALLERS, RequestRates
from hutch.errors import RateLimitedError
from hutch.settings import LimitSettings
from tests.api.conftest import Api

CREATES, REQUESTS, RUNNING, UNAUTHORIZED = 5, 30, 3, 40


@pytest.fixture
def environment() -> dict[str, str]:
    return {
        "HUTCH_LIMITS__CREATES_PER_MINUTE": str(CREATES),
        "HUTCH_LIMITS__DELETES_PER_SECOND": "2",
        "HUTCH_LIMITS__REQUESTS_PER_MINUTE": str(REQUESTS),
        "HUTCH_LIMITS__CONCURRENT_SANDBOXES": str(RUNNING),
        "HUTCH_LIMITS__UNAUTHORIZED_PER_MINUTE": str(UNAUTHORIZED),
    }


def limits(answer: httpx.Response) -> tuple[int, int]:
    # The answer may be some seconds old.
    assert -30 <= int(answer.headers["x-ratelimit-reset"]) - time.time() <= 62
    return int(answer.headers["x-ratelimit-limit"]), int(answer.headers["x-ratelimit-remaining"])


@pytest.mark.section("4.2", "18.3")
async def test_answers_say_how_many_are_left_and_more_are_refused(api: Api) -> None:
    answers = [await api.http.get("/v2/sandboxes") for _ in range(REQUESTS)]
    assert {answer.status_code for answer in answers} == {200}
    left = [limits(answer)[1] for answer in answers]
    # What comes back meanwhile is at most one in two seconds.
    assert left[0] == REQUESTS - 1
    assert left == sorted(left, reverse=True)
    refused = answers[-1]
    while refused.status_code == 200:
        refused = await api.http.get("/v2/sandboxes")
    assert refused.status_code == 429
    assert limits(refused) == (REQUESTS, 0)
    assert refused.json()["error"]["code"] == "rate_limited"
    assert 1 <= int(refused.headers["retry-after"]) <= 60 / REQUESTS + 1


async def test_what_is_wrong_with_a_request_is_no_reason_not_to_count_it(api: Api) -> None:
    for _ in range(REQUESTS):
        await api.http.get("/v2/sandboxes/no-such-sandbox")
    statuses = {(await api.http.get(f"/v2/sandboxes/guess-{number}")).status_code for number in range(10)}
    assert 429 in statuses


async def test_another_project_and_requests_of_nobody_do_not_count_for_a_project(api: Api) -> None:
    other = await api.tenant("other")
    # Some come back meanwhile: one in two seconds, and a busy machine answers not many more.
    statuses = {(await api.http.get("/v2/sandboxes")).status_code for _ in range(3 * REQUESTS)}
    assert statuses == {200, 429}
    assert limits(await other.http.get("/v2/sandboxes")) == (REQUESTS, REQUESTS - 1)
    nobody = api.client("not-a-token")
    assert {(await nobody.get("/v2/sandboxes")).status_code for _ in range(REQUESTS + 5)} == {401}
    assert "x-ratelimit-limit" not in (await nobody.get("/v2/sandboxes")).headers


@pytest.mark.section("4.4", "4.6", "18.3")
async def test_creations_have_a_limit_of_their_own(api: Api) -> None:
    made = []
    for number in range(CREATES):
        answer = await api.http.post("/v3/sandboxes", json={"name": f"s{number}", "persistent": False})
        assert limits(answer) == (CREATES, CREATES - 1 - number)
        made.append(answer.status_code)
        await api.http.delete(f"/v2/sandboxes/s{number}")
        await asyncio.sleep(0.5)  # Two deletions a second are admitted.
    assert made == [200] * CREATES
    refused = await api.http.post("/api/v3/sandboxes", json={"name": "more"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 60 / CREATES
    assert (await api.http.get("/v2/sandboxes")).status_code == 200
    assert (await api.http.get("/v2/sandboxes/more")).status_code == 404


@pytest.mark.section("4.6", "18.3")
async def test_as_many_run_at_once_as_may(api: Api) -> None:
    for number in range(RUNNING):
        await api.create(name=f"s{number}", persistent=False)
    refused = await api.http.post("/v3/sandboxes", json={"name": "more"})
    assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (429, "rate_limited", "5")
    assert (await api.http.get("/v2/sandboxes/more")).status_code == 404
    await api.http.delete("/v2/sandboxes/s0")
    # The fifth of the five creations that are admitted at once.
    await api.create(name="more", persistent=False)


async def test_requests_without_a_valid_token_count_for_their_address(api: Api) -> None:
    clients = [api.client(token) for token in ("", "no-token", "x.y.z", api.own.token + "x")]
    statuses = []
    for number in range(UNAUTHORIZED + 4):
        answer = await clients[number % len(clients)].get("/v2/sandboxes")
        statuses.append(answer.status_code)
    assert statuses[:UNAUTHORIZED] == [401] * UNAUTHORIZED
    refused = answer
    while refused.status_code == 401:
        refused = await clients[0].get("/v2/sandboxes")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 60 / UNAUTHORIZED + 1
    assert "x-ratelimit-limit" not in refused.headers
    # Whoever shares the address and has a token is not locked out.
    assert (await api.http.get("/v2/sandboxes")).status_code == 200
    assert (await clients[0].get("/healthz")).status_code == 200


async def test_guessed_tickets_of_terminals_count_as_well(api: Api) -> None:
    url = api.url.replace("http://", "ws://") + "/v2/sandboxes/terminal?token=guess"
    statuses = []
    while 429 not in statuses:
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, proxy=None)
        statuses.append(refused.value.response.status_code)
        assert len(statuses) < 2 * UNAUTHORIZED
    assert statuses[:UNAUTHORIZED] == [401] * UNAUTHORIZED
    assert json.loads(refused.value.response.body)["error"]["code"] == "rate_limited"
    assert (await api.client("").get("/v2/sandboxes")).status_code == 429


async def test_a_fork_of_many_is_as_many_creations_or_none(api: Api) -> None:
    await api.create(name="source", persistent=False)
    refused = await api.http.post("/v2/sandboxes/source/fork", json={"count": CREATES, "name": "more"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    listed = (await api.http.get("/v2/sandboxes")).json()["sandboxes"]
    assert [sandbox["name"] for sandbox in listed] == ["source"]
    made = await api.http.post("/v2/sandboxes/source/fork", json={"count": 2, "name": "two"})
    assert made.status_code == 200, made.text
    assert len(made.json()["forks"]) == 2
    # The first, the request that was refused, and both of these.
    assert limits(made) == (CREATES, CREATES - 4)


def test_addresses_of_one_network_count_as_one() -> None:
    rates = RequestRates(LimitSettings(unauthorized_per_minute=1))

    def refused(*addresses: str) -> list[bool]:
        found = []
        for address in addresses:
            try:
                rates.count_unauthorized({"client": (address, 1)}, 0)
                found.append(False)
            except RateLimitedError:
                found.append(True)
        return found

    assert refused("192.0.2.1", "192.0.2.1", "192.0.2.2", "::ffff:192.0.2.2") == [False, True, False, True]
    assert refused("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1", "fe80::1%lo", "fe80::2%lo") == [
        False,
        True,
        False,
        False,
        True,
    ]
    assert refused("", "") == [False, True]


def test_many_addresses_do_not_fill_memory() -> None:
    rates = RequestRates(LimitSettings(unauthorized_per_minute=1))
    for number in range(2 * MOST_CALLERS):
        rates.count_unauthorized({"client": (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1)}, 0)
    assert len(rates._unauthorized) == MOST_CALLERS
