"""What a network policy would do to a request, asked here: no server is needed, but the engine (`hutch_native`), which is in
Hutch's wheel and in a checkout after `make setup`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from hutch.client.inputs import NetworkPolicy
from hutch.errors import UnavailableError

if TYPE_CHECKING:
    from hutch.egress.policy import Explanation

UNREADABLE = b'"<redacted>"'
STAND_IN = b'"redacted"'


def explain(
    policy: NetworkPolicy | None,
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    address: str | None = None,
    bounds: Sequence[NetworkPolicy] = (),
) -> Explanation:
    """What would happen to a request, and which rule decides: `decision`, `reason`, `message`, `pattern`, `rule`. `policy` None
    is allow-all; `address` is what the sandbox dials; `bounds` are the policies within which it holds. What only the server knows
    is not known here: the operator's policy and ranges, and which credentials are stored (all are taken to be).

    Raises `BadRequestError` (`invalid_network_policy`), `UnavailableError` (`policy_engine_missing`).
    """
    try:
        from hutch.egress import policy as engine
    except ImportError as error:
        raise UnavailableError(
            "policy_engine_missing",
            f"The policy engine is not part of this installation ({error}); `hutch policy check` on the server's machine has it.",
        ) from error
    question = engine.Question(url, method, list((headers or {}).items()), address)
    return engine.explain([*map(_text, bounds), _text("allow-all" if policy is None else policy)], question, engine.Boundaries())


def _text(policy: NetworkPolicy) -> bytes:
    # A policy that was read has no secret values. Which rule decides does not depend on them.
    return msgspec.json.encode(policy).replace(UNREADABLE, STAND_IN)
