"""The two services that this worker stands between. No request has a token: the gateway adds them on the way."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urljoin
from urllib.request import Request, urlopen

from hutch.worker import RateLimitError

TIMEOUT_S = 30


def rates(after: str | None) -> tuple[list[dict[str, Any]], str | None]:
    """A page of rates, and what the following page is asked for with."""
    found = _ask("ERRORS_URL", "GET", "rates" + (f"?{urlencode({'after': after})}" if after else ""))
    return found["items"], found.get("next")


def open_issues(label: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    query = {"state": "open", "label": label}
    while True:
        answer = _ask("ISSUES_URL", "GET", f"issues?{urlencode(query)}")
        found += answer["items"]
        if "next" not in answer:
            return found
        query["after"] = answer["next"]


def open_issue(key: str, *, title: str, body: str, labels: list[str]) -> dict[str, Any]:
    """The tracker opens one issue for a key, however often it is asked."""
    issue = {"title": title, "body": body, "labels": labels}
    found: dict[str, Any] = _ask("ISSUES_URL", "POST", "issues", issue, {"idempotency-key": key})
    return found


def close_issue(number: int, comment: str) -> None:
    _ask("ISSUES_URL", "POST", f"issues/{number}/comments", {"body": comment})
    _ask("ISSUES_URL", "PATCH", f"issues/{number}", {"state": "closed"})


def _ask(where: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    url = urljoin(os.environ[where], path)
    request = Request(url, data, {"content-type": "application/json", **(headers or {})}, method=method)
    try:
        with urlopen(request, timeout=TIMEOUT_S) as answer:
            return json.load(answer)
    except HTTPError as error:
        if error.code == 429:
            raise RateLimitError(float(error.headers.get("retry-after") or 0) or None) from error
        raise RuntimeError(f"{method} {request.host}{request.selector.partition('?')[0]}: {error.code}") from error
