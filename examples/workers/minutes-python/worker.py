"""Makes a formatted page of a chat thread: a tool for agents, and a button."""

from __future__ import annotations

import os
import re
from typing import TypedDict
from urllib.parse import unquote, urlsplit

from services import messages_of, names_of, put_page
from thread_page import page_of, people_in

from hutch.worker import CREDENTIAL, AutomationEvent, Worker, WorkerError

worker = Worker()

# Programs never see these tokens: the gateway adds each to requests to its own service.
for url, key in (("CHAT_URL", "CHAT_TOKEN"), ("PAGES_URL", "PAGES_TOKEN")):
    host = urlsplit(os.environ.get(url, "")).hostname
    if not host:
        raise WorkerError(f"{url} is not set. Before the deploy: hutch worker env set … {url}")
    worker.credential(key, {host: {"Authorization": f"Bearer {CREDENTIAL}"}})


class ThreadPage(TypedDict):
    title: str
    markdown: str


class Published(TypedDict):
    title: str
    url: str


@worker.tool(title="Read a thread as a page", read_only=True)
def read_thread(channel: str, thread: str) -> ThreadPage:
    """Returns a chat thread as a page in Markdown, with its decisions and open tasks first. Changes nothing."""
    messages = messages_of(channel, thread)
    found = page_of(messages, names_of(people_in(messages)))
    return ThreadPage(title=found["title"], markdown=found["markdown"])


@worker.tool(title="Publish a thread as a page")
def publish_thread(channel: str, thread: str) -> Published:
    """Makes a page of a chat thread, or renews the one that there is, and returns its address."""
    found = read_thread(channel, thread)
    return Published(title=found["title"], url=put_page(channel, thread, dict(found)))


@worker.automation(title="Publish the thread")
def publish(event: AutomationEvent) -> None:
    """The button: makes a page of the thread that the property Thread names (…/channels/CHANNEL/threads/THREAD)."""
    properties = (event.page_data or {}).get("properties", {})
    address = properties.get("Thread", {}).get("url") or ""
    match = re.search(r"/channels/([^/?#]+)/threads/([^/?#]+)", address)
    if match is None:
        raise ValueError("The property Thread has no address of a thread.")
    channel, thread = map(unquote, match.groups())
    print(f"published {publish_thread(channel, thread)['url']}")
