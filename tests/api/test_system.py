"""Health, metrics, documentation, images, draining, and the shape of every error."""

from __future__ import annotations

import re

import pytest

from hutch.api.startup import identity
from hutch.errors import InternalError
from hutch.host.protocol import IngressState
from tests.api.conftest import Api


@pytest.mark.section("10.4")
async def test_health_needs_no_token(api: Api) -> None:
    client = api.client("")
    for path in ("/healthz", "/readyz", "/health", "/metrics", "/openapi.json", "/api/openapi.json"):
        assert (await client.get(path)).status_code == 200, path


async def test_ready_means_that_a_create_would_succeed(api: Api) -> None:
    assert (await api.http.get("/readyz")).json()["isolation"] == "gvisor"
    api.host.ready = False
    response = await api.http.get("/readyz")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "host_not_ready")
    assert "filling the pool" in response.json()["error"]["message"]


async def test_draining_refuses_new_work_and_says_so(api: Api) -> None:
    api.services.draining = True
    for path in ("/v2/sandboxes", "/hutch/v1/whoami", "/readyz"):
        response = await api.http.get(path)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
        assert response.headers["retry-after"] == "2"
    assert (await api.http.get("/healthz")).status_code == 200


async def test_metrics_count_requests_by_route_and_not_by_path(api: Api) -> None:
    await api.create(name="one")
    await api.http.get("/api/v2/sandboxes/one")
    await api.http.get("/v2/sandboxes/" + "x" * 50)
    await api.http.get("/no/such/thing")
    text = (await api.http.get("/metrics")).text
    assert 'hutch_http_requests_total{method="GET",route="/v2/sandboxes/{name}",status="200"} 1.0' in text
    assert 'hutch_http_requests_total{method="GET",route="/v2/sandboxes/{name}",status="404"} 1.0' in text
    assert 'hutch_http_requests_total{method="other",route="unmatched",status="404"} 1.0' in text
    assert "xxxxx" not in text
    assert "hutch_host_up 1.0" in text
    assert "hutch_host_sessions 1.0" in text


async def test_metrics_are_there_while_the_host_is_away(api: Api) -> None:
    await api.host.stop()
    assert "hutch_host_up 0.0" in (await api.http.get("/metrics")).text
    await api.host.start()


async def test_metrics_of_the_ingress_are_those_that_it_says(api: Api) -> None:
    text = (await api.http.get("/metrics")).text
    assert "hutch_ingress_up 0.0" in text
    assert "hutch_ingress_answers_total{" not in text
    api.host.ingress_state = IngressState(
        connections=3,
        routes=2,
        complete=True,
        results={"2xx": 7, "reset": 1},
        refusals={"SANDBOX_NOT_FOUND": 4},
        closed={"all": 0, "client": 5},
        wakes={"resumed": 6, "failed": 0},
        received_bytes=10,
        sent_bytes=20,
    )
    lines = (await api.http.get("/metrics")).text.splitlines()
    assert {
        "hutch_ingress_up 1.0",
        "hutch_ingress_connections 3.0",
        "hutch_ingress_routes 2.0",
        'hutch_ingress_answers_total{result="2xx"} 7.0',
        'hutch_ingress_answers_total{result="reset"} 1.0',
        'hutch_ingress_refusals_total{code="SANDBOX_NOT_FOUND"} 4.0',
        'hutch_ingress_connections_closed_total{bound="client"} 5.0',
        'hutch_ingress_wakes_total{outcome="resumed"} 6.0',
        'hutch_ingress_bytes_total{direction="received"} 10.0',
        'hutch_ingress_bytes_total{direction="sent"} 20.0',
    } <= set(lines)


async def test_the_openapi_document_describes_every_route(api: Api) -> None:
    document = (await api.http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.")
    assert "post" in document["paths"]["/v2/sandboxes/sessions/{session_id}/cmd"]
    assert "delete" in document["paths"]["/hutch/v1/tokens/{token_id}"]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', (await api.http.get("/openapi.json")).text))
    assert references <= set(document["components"]["schemas"])


async def test_images_are_listed(api: Api) -> None:
    image = (await api.http.get("/hutch/v1/images")).json()["images"][0]
    assert image["name"] == "vercel/sandbox/universal:latest"
    assert image["size_bytes"] == 10


@pytest.mark.parametrize(
    "path",
    ["/", "/nope", "/api", "/api/", "/v2", "/v5/sandboxes", "/v2/sandboxes/a/b/c", "//v2/sandboxes", "/api/api/v2/sandboxes"],
)
async def test_what_is_not_there_is_404_in_the_one_shape(api: Api, path: str) -> None:
    response = await api.http.get(api.url + path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


async def test_a_method_that_is_not_taken_is_405(api: Api) -> None:
    response = await api.http.request("PUT", "/v2/sandboxes")
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"]


async def test_a_fault_of_ours_is_500_without_its_text(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ValueError("s3cret detail")

    monkeypatch.setattr(api.services.images, "list", broken)
    response = await api.http.get("/hutch/v1/images")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "s3cret" not in response.text


async def test_an_error_of_the_tree_keeps_its_code(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise InternalError("image_store_broken", "The image store is broken.")

    monkeypatch.setattr(api.services.images, "list", broken)
    assert (await api.http.get("/hutch/v1/images")).json() == {
        "error": {"code": "image_store_broken", "message": "The image store is broken."}
    }


async def test_the_servers_own_token_stays_the_same_until_half_its_life_is_over(api: Api) -> None:
    assert await identity(api.services) == api.own
    later = api.services.clock() + api.services.settings.tokens.max_ttl_s * 501
    api.services.clock = lambda: later
    assert (await identity(api.services)).token != api.own.token
