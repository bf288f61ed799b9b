"""The real host of `tests/host`, for guests that mean harm."""

from tests.host.conftest import box, host, no_leaks

__all__ = ["box", "host", "no_leaks"]
