"""A route that does not say who may call it can't be made."""

from __future__ import annotations

import pytest
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api.routing import PlainRoute, documented
from hutch.control.permissions import Permission


async def endpoint(request: Request) -> Response:
    """Answers nothing."""
    return Response()


def test_an_endpoint_needs_a_permission_or_is_public_and_not_both() -> None:
    for arguments in ({}, {"needs": Permission.SELF, "public": True}):
        with pytest.raises(TypeError, match="permission"):
            documented(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("extra", [None, {}, {"x-own": 1}])
def test_a_route_without_it_is_refused(extra: dict[str, object] | None) -> None:
    router = APIRouter(route_class=PlainRoute)
    with pytest.raises(TypeError, match="/open"):
        router.get("/open", openapi_extra=extra)(endpoint)
