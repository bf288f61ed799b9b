"""Chaos needs the host's check for leaks."""

from __future__ import annotations

from tests.host.conftest import no_leaks

__all__ = ["no_leaks"]
