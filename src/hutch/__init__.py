"""Hutch runs code that nobody trusts, in sandboxes of its own."""

__version__ = "0.1.0"
