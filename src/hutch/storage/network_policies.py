"""Network policies in their sealed columns: the request form with its secret values, and what is shown of it."""

from __future__ import annotations

from typing import Any

import msgspec

from hutch.control.records import NetworkPolicy
from hutch.egress.policy import check
from hutch.errors import BadRequestError
from hutch.storage.sealing import Sealer


def seal(policy: NetworkPolicy | None, row_id: str, sealer: Sealer) -> bytes | None:
    return sealer.seal(policy, row_id) if policy is not None else None


def opened(sealed: bytes | None, row_id: str, sealer: Sealer) -> NetworkPolicy | None:
    """The policy of a row. Raises `InternalError` when the key is not the one it was sealed with."""
    if sealed is None:
        return None
    value = sealer.open(sealed, row_id)
    return msgspec.convert(value, NetworkPolicy) if "policy" in value else _of_first_schema(value)


def _of_first_schema(value: dict[str, Any]) -> NetworkPolicy:
    """What was written before policies were enforced: the request form itself, whose structure alone had been checked."""
    try:
        checked = check(value)
    except BadRequestError:
        checked = check('"deny-all"')
    return NetworkPolicy(checked.text, checked.read_back, 1, (), checked.credentials)
