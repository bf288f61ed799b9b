"""A server without a provider."""

from __future__ import annotations

import pytest

from tests.api.conftest import Api, api, environment, host, installed

__all__ = ["api", "environment", "host", "installed"]
LOGIN = "/hutch/v1/login"


@pytest.mark.parametrize("path", [LOGIN, f"{LOGIN}/callback", f"{LOGIN}?login=x"])
async def test_a_browser_is_told_that_nobody_can_log_in(api: Api, path: str) -> None:
    response = await api.client("").get(path)
    assert response.status_code == 404
    assert response.headers["content-type"].startswith("text/html")
    assert "sso_not_configured" in response.text


@pytest.mark.parametrize(
    ("path", "body"),
    [(LOGIN, {"challenge": "x" * 43}), (f"{LOGIN}/token", {"code": "x" * 43, "verifier": "x" * 43})],
)
async def test_a_command_line_is_told_so_too(api: Api, path: str, body: dict[str, str]) -> None:
    response = await api.client("").post(path, json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "sso_not_configured")
    assert api.services.provider is None
