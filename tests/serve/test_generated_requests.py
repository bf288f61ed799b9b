"""Requests made of `/openapi.json` (`tests.generated`) to a whole server: those that make nothing.

Whatever the document does not allow is refused by a real host and gateway as well, and whatever can be read is read.
"""

from __future__ import annotations

import pytest
from schemathesis import GenerationMode

from tests.conftest import RunningServer
from tests.generated import OPERATIONS, Asking, at_the_edges

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(600)]


def test_what_is_not_allowed_is_refused_and_what_is_there_is_read(server: RunningServer, leak_check: None) -> None:
    ask = Asking(server.where.url, server.where.token)
    for name, operation in sorted(OPERATIONS.items()):
        for case in at_the_edges(operation, GenerationMode.NEGATIVE):
            # Bodies need no content type, so that another one is no reason to refuse what would be made of them.
            if "Content-Type" not in case.headers:
                assert not ask(case) or operation.method == "get", f"{name} took what the document does not allow: {case}"
        if operation.method == "get":
            for case in at_the_edges(operation, GenerationMode.POSITIVE):
                ask(case)
    ask.close()
    assert ask.operations == set(OPERATIONS)
    assert ask.statuses[200] > 50, ask.statuses
    assert ask.statuses[400] > 200, ask.statuses
