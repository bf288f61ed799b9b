"""What the API process asks of others when it is shut in: a provider of logins, and a collector of metrics."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.api.test_telemetry import receiving, values_of
from tests.login.conftest import CLIENT_SECRET, settings_for
from tests.login.hostile import hostile_provider
from tests.serve.conftest import Start, eventually


def test_a_process_that_is_shut_in_asks_the_provider_and_sends_metrics(start: Start) -> None:
    with hostile_provider() as provider, receiving() as receiver:
        telemetry = {
            "HUTCH_TELEMETRY__OTLP_ENDPOINT": receiver.url,
            "HUTCH_TELEMETRY__INTERVAL_S": "1",
            "HUTCH_TELEMETRY__HEADERS": "authorization=telemetry-s3cret",
        }
        server = start(**settings_for(provider.issuer), **telemetry)
        with httpx.Client(base_url=server.ready["url"]) as http:
            begun = http.post("/api/hutch/v1/login", json={"challenge": "x" * 43, "port": 45678, "state": "x" * 43}).json()
            response = http.get(begun["url"])
            assert (response.status_code, urlsplit(response.headers["location"]).path) == (303, "/authorize")
            # The end of it is refused, because nobody is in a team; it came as far as keys and claims.
            back = httpx.get(response.headers["location"]).headers["location"]
            shown = http.get(back)
            assert (shown.status_code, "/keys" in provider.asked) == (403, True), shown.text
        request = eventually(lambda: receiver.requests and receiver.requests[-1], "no metrics")
        assert values_of(request)[("hutch_host_up", ())] == 1
        assert receiver.headers[-1]["authorization"] == "telemetry-s3cret"
        host = Path(f"/proc/{server.children()['host']}/environ").read_text()
        assert CLIENT_SECRET not in host
        assert "telemetry-s3cret" not in host
        assert f"HUTCH_SSO__ISSUER={provider.issuer}" in host
        assert CLIENT_SECRET not in server.log.read_text()
