# Written by scripts/write_sync_client.py from `_async/__init__.py`; change that one.
"""The blocking flavour of the client."""
