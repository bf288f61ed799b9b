"""The CRM's API: `CRM_URL` is where it is."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urljoin
from urllib.request import urlopen

from hutch.worker import RateLimitError

TIMEOUT_S = 30


def get(path: str, **query: str | int | None) -> tuple[list[dict[str, Any]], str | None]:
    """A page of records, and what the following page is asked for with; after the last one None.

    The request has no token: the gateway adds it on the way.
    """
    asked = urlencode({name: value for name, value in query.items() if value is not None})
    try:
        with urlopen(urljoin(os.environ["CRM_URL"], f"{path}?{asked}"), timeout=TIMEOUT_S) as answer:
            found = json.load(answer)
    except HTTPError as error:
        if error.code == 429:
            raise RateLimitError(float(error.headers.get("retry-after") or 0) or None) from error
        raise RuntimeError(f"the CRM answered {error.code}") from error
    return found["items"], found.get("next")
