"""Receipts: what something used and what it costs, signed, so that anybody can compute it again.

The signature is Ed25519 over the canonical form of everything else: JSON with sorted keys, without white space, in UTF-8, with
integers only (RFC 8785 for such values). `key_id` says whose key it is: the first 16 hexadecimal digits of the SHA-256 of the
raw public key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hutch.metering import strict
from hutch.metering.prices import DIMENSIONS, PriceTable
from hutch.metering.quantities import Quantities

MAX_BYTES = 1024 * 1024
FIELDS = ("subject", "usage", "price_table", "lines", "amount_nano", "currency", "issued_at", "key_id", "signature")
LINE_FIELDS = ("dimension", "quantity", "nano", "per", "amount_nano")


class ReceiptUnreadable(ValueError):
    """It is not a receipt at all."""


class ReceiptInvalid(ValueError):
    """It is a receipt, but not a true one; the text says why."""


def key_id(public: bytes) -> str:
    """The name of a raw Ed25519 public key (32 bytes)."""
    return hashlib.sha256(public).hexdigest()[:16]


def canonical(value: Mapping[str, Any]) -> bytes:
    """The bytes that are signed: everything but the signature."""
    rest = {name: part for name, part in value.items() if name != "signature"}
    return json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def issue(
    subject: dict[str, Any], quantities: Quantities, table: PriceTable, issued_at: int, key: Ed25519PrivateKey
) -> dict[str, Any]:
    """A receipt of quantities. `subject` says what used them; `issued_at` is in milliseconds since the epoch."""
    receipt: dict[str, Any] = {
        "subject": subject,
        "usage": msgspec.to_builtins(quantities),
        "price_table": table.version,
        "lines": msgspec.to_builtins(table.lines(quantities)),
        "amount_nano": table.amount_nano(quantities),
        "currency": table.currency,
        "issued_at": issued_at,
        "key_id": key_id(key.public_key().public_bytes_raw()),
    }
    return receipt | {"signature": base64.urlsafe_b64encode(key.sign(canonical(receipt))).decode().rstrip("=")}


def parse(data: bytes) -> dict[str, Any]:
    """A receipt's fields. Raises `ReceiptUnreadable`."""
    if len(data) > MAX_BYTES:
        raise ReceiptUnreadable(f"it has more than {MAX_BYTES} bytes")
    try:
        value = strict.loads(data)
        # What can't be written again, such as half of a surrogate pair, was never signed.
        canonical(value if isinstance(value, dict) else {})
    except ValueError as error:
        raise ReceiptUnreadable(str(error) or "it is not JSON") from error
    if not isinstance(value, dict) or set(value) != set(FIELDS):
        raise ReceiptUnreadable(f"a receipt has the fields {', '.join(FIELDS)}, and no others")
    texts = ("price_table", "currency", "key_id", "signature")
    if not all(isinstance(value[name], str) for name in texts):
        raise ReceiptUnreadable(f"{', '.join(texts)} are texts")
    if not all(type(value[name]) is int for name in ("amount_nano", "issued_at")):
        raise ReceiptUnreadable("amount_nano and issued_at are integers")
    if not isinstance(value["subject"], dict) or not isinstance(value["usage"], dict) or not isinstance(value["lines"], list):
        raise ReceiptUnreadable("subject and usage are objects, lines is an array")
    if not all(isinstance(line, dict) and set(line) == set(LINE_FIELDS) for line in value["lines"]):
        raise ReceiptUnreadable(f"a line has the fields {', '.join(LINE_FIELDS)}, and no others")
    numbers = [line[name] for line in value["lines"] for name in LINE_FIELDS if name != "dimension"]
    if not all(type(number) is int and number >= 0 for number in [*numbers, *value["usage"].values()]):
        raise ReceiptUnreadable("quantities and amounts are integers, none negative")
    if not all(isinstance(line["dimension"], str) for line in value["lines"]):
        raise ReceiptUnreadable("a line's dimension is a text")
    return value


def verify(receipt: Mapping[str, Any], keys: Mapping[str, bytes]) -> None:
    """Check the signature with the raw public key of that id, then compute everything again. Raises `ReceiptInvalid`."""
    public = keys.get(receipt["key_id"])
    if public is None or key_id(public) != receipt["key_id"]:
        raise ReceiptInvalid(f"its key '{receipt['key_id'][:64]}' is none of this server's")
    try:
        text = receipt["signature"]
        signature = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        Ed25519PublicKey.from_public_bytes(public).verify(signature, canonical(receipt))
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise ReceiptInvalid("its signature does not match its contents") from error
    for line in receipt["lines"]:
        name = line["dimension"]
        if name not in DIMENSIONS or receipt["usage"].get(name) != line["quantity"]:
            raise ReceiptInvalid(f"its line of {name[:64]} is not about the usage that it states")
        if line["per"] < 1 or line["quantity"] * line["nano"] // line["per"] != line["amount_nano"]:
            raise ReceiptInvalid(f"its line of {name} does not add up")
    if len({line["dimension"] for line in receipt["lines"]}) != len(receipt["lines"]):
        raise ReceiptInvalid("it has two lines of one dimension")
    if sum(line["amount_nano"] for line in receipt["lines"]) != receipt["amount_nano"]:
        raise ReceiptInvalid("its lines do not add up to its amount")
