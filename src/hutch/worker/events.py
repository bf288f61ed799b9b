"""What automations and webhooks are handed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class AutomationEvent:
    """A click, or a call. `page_id` and `page_data` are there where it happened on a page."""

    action_type: str
    page_id: str | None = None
    page_data: dict[str, Any] | None = None
    event: dict[str, Any] = field(default_factory=dict)
    """All of it, as it came: forms have more."""

    @classmethod
    def read(cls, sent: Any) -> AutomationEvent:
        event = sent if isinstance(sent, dict) else {}
        return cls(str(event.get("actionType", "")), event.get("pageId"), event.get("pageData"), event)


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """A request that was taken. `delivery_id` is the same in every repetition; names of headers are in lower case; `body` is the
    JSON object that was sent, and empty where it was none."""

    delivery_id: str
    body: dict[str, Any]
    raw_body: str
    headers: dict[str, str]
    method: str

    @classmethod
    def read(cls, sent: dict[str, Any]) -> WebhookEvent:
        return cls(
            str(sent.get("deliveryId", "")),
            sent.get("body") or {},
            sent.get("rawBody", ""),
            sent.get("headers") or {},
            sent.get("method", "POST"),
        )


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """A request that nobody has taken yet."""

    method: str
    url: str
    query: dict[str, str]
    headers: dict[str, str]
    raw_body: str

    @classmethod
    def read(cls, sent: dict[str, Any]) -> VerifyRequest:
        return cls(
            sent.get("method", "POST"),
            sent.get("url", ""),
            sent.get("query") or {},
            sent.get("headers") or {},
            sent.get("rawBody", ""),
        )


@dataclass(frozen=True, slots=True)
class VerifyResponse:
    """What is answered to it: a status of 2xx or 4xx, and at most 8 KB. `deliver` says whether the event is handed over; without
    it, with 2xx it is."""

    status: int = 200
    body: str | None = None
    content_type: str | None = None
    deliver: bool | None = None

    def sent(self) -> dict[str, Any]:
        found = {"status": self.status, "body": self.body, "contentType": self.content_type, "deliver": self.deliver}
        return {name: value for name, value in found.items() if value is not None}
