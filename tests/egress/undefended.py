"""Tests of threats that no defence of ours can be switched off for, and why."""

from __future__ import annotations

UNDEFENDED = {
    "test_t11_a_large_datagram_arrives_whole_and_so_does_its_answer": "nothing is refused: what is allowed must work",
}
