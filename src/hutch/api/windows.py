"""Taking usage windows from the host: told at least once, written exactly once, then acknowledged.

The cursor of what was written is in the database, in the same transaction as the windows, so that neither a death of this process
nor one of the host's has any window missed or counted twice.
"""

from __future__ import annotations

import asyncio
import logging

from hutch.api.services import Services
from hutch.errors import HutchError
from hutch.host.protocol import NumberedWindow
from hutch.metering.quantities import Quantities
from hutch.storage import hosts, usage
from hutch.wire import Stream
from hutch.wire.connection import ConnectionClosed, Message

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
BATCH = 256
BATCH_PAUSE_S = 0.05


async def follow(services: Services) -> None:
    """Take windows for ever, connecting again when the host restarts."""
    pause = FIRST_PAUSE_S
    while True:
        try:
            await _follow(services)
        except HutchError:
            # `host_events` says that the host does not answer.
            pass
        except Exception:
            log.exception("usage windows could not be written")
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_S)


async def _follow(services: Services) -> None:
    host_id = (await services.host_info()).host_id
    # Its own cursor beside that of the host's events.
    cursor = f"{host_id}:usage"
    async with services.database.read() as connection:
        after = await hosts.cursor(connection, cursor)
    stream = await services.host.open("usage.windows", {"after": after})
    try:
        stream.send_end()
        await stream.reply()
        while True:
            windows = await _batch(stream)
            last = max(told.seq for told in windows)
            async with services.database.write() as connection:
                await usage.apply(connection, windows)
                await hosts.set_cursor(connection, cursor, last)
            services.metrics.count_usage(sum((told.window.quantities for told in windows), Quantities()), len(windows))
            await services.host.call("usage.delivered", {"seq": last})
    finally:
        stream.cancel()


async def _batch(stream: Stream) -> list[NumberedWindow]:
    """At least one window, and what else has arrived."""
    windows: list[NumberedWindow] = []
    while not windows or (stream.waiting_items and len(windows) < BATCH):
        item = await stream.next()
        if item is None:
            raise ConnectionClosed("the host ended its usage windows")
        if isinstance(item, Message):
            windows.append(item.decode(NumberedWindow))
            if len(windows) == 1:
                await asyncio.sleep(BATCH_PAUSE_S)
    return windows
