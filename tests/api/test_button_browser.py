"""A button's page in a real browser: looked at, clicked, reloaded."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Api
from tests.api.deployed import deployed
from tests.login.chromium import browser

PICTURES = os.environ.get("HUTCH_PICTURES")
"""A directory that keeps what the browser showed."""


@pytest.mark.timeout(180)
async def test_a_person_clicks_and_sees_what_came_of_it(api: Api, tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def slow(job: dict[str, Any]) -> Any:
        await gate.wait()
        return {"status": "success"}

    pictures = Path(PICTURES) if PICTURES else tmp_path
    worker = await deployed(api, slow)
    made = (await api.http.post(f"/hutch/v1/workers/{worker}/automations/press/buttons", json={})).json()
    url = made["url"].replace(api.services.issuer, api.url)
    async with browser(tmp_path / "profile") as tab:
        await tab.goto(url)
        await tab.until("document.querySelector('button')?.textContent === 'Press <me>'")
        # The style is in effect: the policy lets it, and nothing else.
        assert await tab.run("getComputedStyle(document.querySelector('button')).backgroundColor") == "rgb(31, 111, 235)"
        await tab.picture(pictures / "button.png")
        await tab.run("document.querySelector('button').click()")
        await tab.until("document.querySelector('[role=status]')?.textContent === 'Working…'")
        await tab.picture(pictures / "working.png")
        gate.set()
        await tab.until("document.querySelector('[role=status]')?.textContent === 'Done.'")
        await tab.picture(pictures / "done.png")
        await tab.call("Page.reload")
        await tab.until("document.querySelector('[role=status]')?.textContent === 'Done.'")
        await tab.run("history.back()")
        await tab.until("document.querySelector('button') !== null")
        await tab.goto(f"{made['url'].replace(api.services.issuer, api.url)}/presses/none")
        await tab.until("document.body.textContent.includes('not_found')")
        await tab.goto(f"data:text/html,<form method=post action='{url}'><input name=press value={'a' * 20}></form>")
        await tab.until("document.querySelector('form') !== null")
        await tab.run("document.querySelector('form').submit()")
        await tab.until("document.body.textContent.includes('cross_origin')")
    assert [job["context"] for job in api.host.worker_jobs] == [{"actionType": "button"}]
