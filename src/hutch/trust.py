"""Whom certificates of strangers' servers have to be of."""

from __future__ import annotations

import functools
import ssl


@functools.cache
def system_trust() -> ssl.SSLContext:
    """The roots of this machine, read once: that takes longer than most of a start. Nobody adds to it."""
    return ssl.create_default_context()
