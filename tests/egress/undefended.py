"""Tests of threats that no defence of ours can be switched off for, and why."""

from __future__ import annotations

UNDEFENDED = {
    "test_t34_an_open_flow_does_not_depend_on_what_the_name_says_later": "nothing is cut: what is allowed must go on",
    "test_t98_counters_are_what_the_origin_got": "nothing is refused: what passes is counted",
    "test_t11_a_large_datagram_arrives_whole_and_so_does_its_answer": "nothing is refused: what is allowed must work",
}
