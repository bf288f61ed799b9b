"""A receipt is believed when it is signed by a known key and adds up; nothing else is."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from hutch.metering import receipts
from hutch.metering.prices import DEFAULT
from hutch.metering.quantities import Quantities
from hutch.metering.receipts import ReceiptInvalid, ReceiptUnreadable
from tests.metering.test_prices import QUANTITIES

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = KEY.public_key().public_bytes_raw()
KEYS = {receipts.key_id(PUBLIC): PUBLIC}
USED = Quantities(active_cpu_us=5_000_000, wall_us=9_000_000, memory_byte_seconds=10**11, egress_bytes=10**7, creations=1)


def issued(used: Quantities = USED) -> dict[str, Any]:
    return receipts.issue({"kind": "session", "session": "sbx_1"}, used, DEFAULT, 1_700_000_000_000, KEY)


@given(QUANTITIES)
def test_a_receipt_is_valid_after_it_was_written_and_read(used: Quantities) -> None:
    read = receipts.parse(json.dumps(issued(used), indent=2).encode())
    receipts.verify(read, KEYS)
    assert msgspec.convert(read["usage"], Quantities) == used
    assert read["amount_nano"] == DEFAULT.amount_nano(used)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [deeper for name, part in value.items() for deeper in _paths(part, (*path, name))]
    if isinstance(value, list):
        return [deeper for number, part in enumerate(value) for deeper in _paths(part, (*path, number))]
    return [path]


@pytest.mark.parametrize("path", _paths(issued()), ids=lambda path: ".".join(map(str, path)))
def test_no_value_of_it_can_be_changed(path: tuple[Any, ...]) -> None:
    changed = copy.deepcopy(issued())
    place = changed
    for name in path[:-1]:
        place = place[name]
    before = place[path[-1]]
    place[path[-1]] = before + 1 if isinstance(before, int) else "A" + before[1:] if before[0] != "A" else "B" + before[1:]
    with pytest.raises(ReceiptInvalid):
        receipts.verify(receipts.parse(json.dumps(changed).encode()), KEYS)


def test_a_key_that_is_not_known_proves_nothing() -> None:
    with pytest.raises(ReceiptInvalid, match="none of this server's"):
        receipts.verify(issued(), {})
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    with pytest.raises(ReceiptInvalid, match="none of this server's"):
        receipts.verify(issued(), {issued()["key_id"]: other})


def _signed(changes: dict[str, Any]) -> dict[str, Any]:
    """Signed by the right key, but not true."""
    import base64

    receipt = issued() | changes
    signature = KEY.sign(receipts.canonical(receipt))
    return receipt | {"signature": base64.urlsafe_b64encode(signature).decode().rstrip("=")}


def test_what_does_not_add_up_is_not_believed_though_it_is_signed() -> None:
    lines = issued()["lines"]
    for changes, reason in (
        ({"amount_nano": 1}, "add up to its amount"),
        ({"lines": [lines[0] | {"amount_nano": 1}, *lines[1:]]}, "does not add up"),
        ({"lines": [lines[0] | {"quantity": 1}, *lines[1:]]}, "not about the usage"),
        ({"lines": [lines[0] | {"dimension": "wall_us"}, *lines[1:]]}, "not about the usage"),
        ({"lines": [lines[0] | {"per": 0}, *lines[1:]]}, "does not add up"),
        ({"lines": [lines[0], lines[0]], "amount_nano": 2 * lines[0]["amount_nano"]}, "two lines"),
    ):
        with pytest.raises(ReceiptInvalid, match=reason):
            receipts.verify(receipts.parse(json.dumps(_signed(changes)).encode()), KEYS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"{}",
        b"[" * 100_000,
        b'{"a": 1, "a": 1}',
        json.dumps(issued() | {"more": 1}).encode(),
        json.dumps(issued() | {"amount_nano": 1.5}).encode(),
        json.dumps(issued() | {"amount_nano": True}).encode(),
        json.dumps(issued() | {"usage": []}).encode(),
        json.dumps(issued() | {"usage": {"active_cpu_us": -1}}).encode(),
        json.dumps(issued() | {"lines": [1]}).encode(),
        json.dumps(issued() | {"lines": [{"dimension": [], "quantity": 0, "nano": 0, "per": 1, "amount_nano": 0}]}).encode(),
        json.dumps(issued() | {"key_id": 1}).encode(),
        json.dumps(issued() | {"subject": {"name": "\ud800"}}).encode(),
        json.dumps(issued()).encode().replace(b'"issued_at": 1700000000000', b'"issued_at": NaN'),
        json.dumps(issued()).encode().replace(b'"issued_at": 1700000000000', b'"issued_at": 1' + b"0" * 5000),
        b" " * (receipts.MAX_BYTES + 1),
    ],
    ids=range(19),
)
def test_what_is_no_receipt_is_unreadable(data: bytes) -> None:
    with pytest.raises(ReceiptUnreadable):
        receipts.parse(data)


@given(st.binary(max_size=200))
def test_bytes_are_a_receipt_or_unreadable(data: bytes) -> None:
    with pytest.raises(ReceiptUnreadable):
        receipts.parse(data)
