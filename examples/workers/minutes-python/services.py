"""The chat, and where pages are put. No request has a token: the gateway adds them on the way."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urljoin
from urllib.request import Request, urlopen

from hutch.worker import RateLimitError

TIMEOUT_S = 30


def messages_of(channel: str, thread: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    path = f"channels/{quote(channel, safe='')}/threads/{quote(thread, safe='')}/messages"
    following = ""
    while True:
        answer = _ask("CHAT_URL", "GET", path + following)
        found += answer["items"]
        if "next" not in answer:
            return found
        following = f"?after={answer['next']}"


def names_of(ids: list[str]) -> dict[str, str]:
    answer = _ask("CHAT_URL", "GET", f"users?ids={','.join(quote(one, safe='') for one in ids)}")
    return {user["id"]: user["name"] for user in answer["items"]}


def put_page(channel: str, thread: str, page: dict[str, str]) -> str:
    """Make a page, and return its address. Its name is the thread's, so that publishing it again replaces it."""
    return str(_ask("PAGES_URL", "PUT", f"pages/{quote(f'{channel}-{thread}', safe='')}", page)["url"])


def _ask(where: str, method: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = Request(urljoin(os.environ[where], path), data, {"content-type": "application/json"}, method=method)
    try:
        with urlopen(request, timeout=TIMEOUT_S) as answer:
            return json.load(answer)
    except HTTPError as error:
        if error.code == 429:
            raise RateLimitError(float(error.headers.get("retry-after") or 0) or None) from error
        raise RuntimeError(f"{method} {request.host}{request.selector.partition('?')[0]}: {error.code}") from error
