"""Files of this machine, read and written off the event loop."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import IO

from hutch.client._async.waiting import in_thread
from hutch.errors import BadRequestError

CHUNK_BYTES = 256 * 1024


async def read_file(local: Path) -> AsyncGenerator[bytes, None]:
    """What a local file holds. Raises `BadRequestError` (`not_readable`)."""
    try:
        opened = await in_thread(local.open, "rb")
    except OSError as error:
        raise BadRequestError("not_readable", f"{local} can't be read: {error.strerror}.") from error
    with opened as file:
        async for chunk in chunks_of(file):
            yield chunk


async def chunks_of(file: IO[bytes]) -> AsyncGenerator[bytes, None]:
    """What a local file holds."""
    while chunk := await in_thread(file.read, CHUNK_BYTES):
        yield chunk


async def write_file(local: Path, content: AsyncGenerator[bytes, None]) -> int:
    """Write what comes into a local file; its bytes. Into a neighbour first: what breaks off must not leave half a file under the
    name. Raises `BadRequestError` (`not_writable`)."""
    partial, count = local.with_name(f".{local.name}.{secrets.token_hex(4)}"), 0
    try:
        with await in_thread(partial.open, "xb") as file:
            async with aclosing(content):
                async for chunk in content:
                    await in_thread(file.write, chunk)
                    count += len(chunk)
        partial.replace(local)
    except OSError as error:
        raise BadRequestError("not_writable", f"{local} can't be written: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return count
