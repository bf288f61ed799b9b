"""Network policies in their sealed columns."""

from __future__ import annotations

from typing import Any

import pytest

from hutch.control.records import NetworkPolicy, Scope, Unconfirmed
from hutch.errors import InternalError
from hutch.storage import sandboxes
from hutch.storage.database import Database
from hutch.storage.network_policies import opened, seal
from hutch.storage.sealing import Sealer
from tests.storage.conftest import sandbox

POLICY = NetworkPolicy('{"a":"größe"}', {"mode": "custom", "hutch": {"policy": {}}}, 7, ({"code": "x"},), ("A", "B"))


@pytest.mark.parametrize("policy", [POLICY, NetworkPolicy("x", {}, 8, unconfirmed=Unconfirmed(POLICY)), None])
def test_what_is_sealed_opens_again(policy: NetworkPolicy | None) -> None:
    sealer = Sealer(b"k" * 32)
    assert opened(seal(policy, "row", sealer), "row", sealer) == policy
    if policy is not None:
        with pytest.raises(InternalError):
            opened(seal(policy, "row", sealer), "other", sealer)


@pytest.mark.parametrize(
    ("old", "mode"),
    [
        ({"mode": "deny-all"}, "deny-all"),
        ({"mode": "allow-all"}, "allow-all"),
        ({"allow": ["a.test"]}, "custom"),
        ({"mode": "default-deny", "allowedDomains": ["a.test"]}, "custom"),
        # What the engine does not accept allows nothing.
        ({"allow": {"a.test": [{"forwardURL": "http://p.test"}]}}, "deny-all"),
        ({"allow": ["_a.test"]}, "deny-all"),
    ],
)
def test_policies_of_the_first_schema_are_read(old: dict[str, Any], mode: str) -> None:
    sealer = Sealer(b"k" * 32)
    policy = opened(sealer.seal(old, "row"), "row", sealer)
    assert policy is not None
    assert (policy.read["mode"], policy.generation) == (mode, 1)


async def test_generations_count_on_for_ever(database: Database, scope: Scope, sealer: Sealer) -> None:
    record = sandbox(scope, "one")
    async with database.write() as connection:
        await sandboxes.add(connection, record, sealer)
        await sandboxes.add(connection, sandbox(scope, "two"), sealer)
    for expected in (2, 3):
        async with database.write() as connection:
            assert await sandboxes.next_generation(connection, record.id) == expected
            await sandboxes.save(connection, record, sealer)
    async with database.read() as connection:
        found = [await sandboxes.find(connection, scope, name, sealer) for name in ("one", "two")]
    assert [item.network_generation for item in found if item is not None] == [3, 1]
