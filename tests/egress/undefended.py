"""Tests of threats that no defence of ours can be switched off for, and why."""

from __future__ import annotations

UNDEFENDED = {
    "test_t12_http3_is_relayed_where_datagrams_are_admitted": "nothing is refused: what is allowed must work",
    "test_t34_an_open_flow_does_not_depend_on_what_the_name_says_later": "nothing is cut: what is allowed must go on",
    "test_t38_a_name_has_other_spellings": "nothing is refused: every spelling of an allowed name works",
    "test_t53_http2_goes_on_as_what_the_server_speaks": "nothing is refused: both versions of HTTP must work",
    "test_t57_a_thousand_requests_on_one_connection": "nothing is refused: what is allowed must work",
    "test_t58_a_body_that_is_cut_off_is_no_request": "hyper ends a connection whose body is shorter than it said",
    "test_t59_a_websocket_echoes_also_what_came_right_behind": "nothing is refused: what is agreed must work",
    "test_t65_a_prefix_is_bytes": "nothing is refused: what a prefix means",
    "test_t66_regular_expressions_take_linear_time": "a property of the engine for regular expressions",
    "test_t72_bytes_that_nobody_asked_for_answer_nobody": "hyper closes a connection on which something comes unasked",
    "test_t76_an_echo_of_what_another_request_stored": "a residual, as it is",
    "test_t77_computed_forms": "a residual, as it is",
    "test_t83_a_body_is_passed_as_it_is": "nothing is refused: bodies are not looked into",
    "test_t87_what_the_new_policy_admits_goes_on": "nothing is cut: what is still allowed must go on",
    "test_t98_bytes_are_counted_by_name_while_they_pass": "nothing is refused: what passes is counted",
    "test_t98_counters_are_what_the_origin_got": "nothing is refused: what passes is counted",
    "test_t11_a_large_datagram_arrives_whole_and_so_does_its_answer": "nothing is refused: what is allowed must work",
}
