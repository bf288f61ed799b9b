"""Tests of `scripts.setup` and of what it builds."""
