"""What holds for each session's network: its policy, credentials and placeholders, from the control plane to the gateway.

    spec ─▶ placeholders made ─▶ journal (sealed) ─▶ gateway: enforced ─▶ the session may run

The journal has it, sealed with a key of this host, because the gateway must be told again after the host's death, whether or not
a control plane is there. Policies are compiled by the gateway; here they are only text.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from hutch.egress.policy import check as check_policy
from hutch.errors import HutchError, NotFoundError
from hutch.host.gateway import Applied, Gateway
from hutch.host.journal import Journal
from hutch.host.network import Network
from hutch.host.protocol import NetworkSpec
from hutch.storage.sealing import Sealer, load_or_create_key

PLACEHOLDER_PREFIX = "hutch-placeholder-"


class Placeholder(msgspec.Struct, frozen=True):
    """A random text that the guest has in `variable`, and that the gateway replaces by a credential where a rule says so."""

    variable: str
    credential: str
    text: str


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for a session. `team_id`, `sandbox_id` and names are who it is in audit records and identity tokens."""

    sandbox_id: str
    sandbox_name: str
    team_id: str
    project_id: str
    network: NetworkSpec
    placeholders: list[Placeholder] = []

    def message(self, session_id: str) -> dict[str, Any]:
        """What the gateway is told, without the address."""
        return {
            "sandbox_id": self.sandbox_id,
            "sandbox_name": self.sandbox_name,
            "team_id": self.team_id,
            "project_id": self.project_id,
            "lifecycle": session_id,
            "generation": self.network.generation,
            "policy": self.network.policy,
            "bounds": self.network.bounds,
            "credentials": self.network.credentials,
            "placeholders": [msgspec.structs.asdict(placeholder) for placeholder in self.placeholders],
        }

    def env(self) -> dict[str, str]:
        """The variables that hold placeholders."""
        return {placeholder.variable: placeholder.text for placeholder in self.placeholders}


class Egress:
    """The networks of this host's sessions."""

    def __init__(self, gateway: Gateway, journal: Journal, key_file: Path) -> None:
        self._gateway = gateway
        self._journal = journal
        self._sealer = Sealer(load_or_create_key(key_file))
        self._states: dict[str, State] = {}
        # A change reads what holds, writes it and tells the gateway; another one in between would be lost.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def load(self) -> None:
        """Read what a predecessor wrote, before the journal's writer runs."""
        for session_id, sealed in self._journal.egress().items():
            self._states[session_id] = msgspec.convert(self._sealer.open(sealed, session_id), State)

    def state(self, session_id: str) -> State | None:
        return self._states.get(session_id)

    def env(self, session_id: str) -> dict[str, str]:
        state = self._states.get(session_id)
        return state.env() if state is not None else {}

    async def begin(self, session_id: str, network: Network, state: State, known: list[Placeholder]) -> State:
        """Put a new session's policy in place; the state with its placeholders, of which those that are `known` to its processes
        stay what they are. Raises `HutchError`."""
        state = _with_placeholders(state, known)
        await self._put(session_id, state)
        try:
            await self._gateway.set_policy(network, state.message(session_id))
        except HutchError:
            await self.forget(session_id)
            raise
        return state

    async def update(self, session_id: str, network: Network, spec: NetworkSpec) -> Applied:
        """Replace a running session's policy: durable first, then enforced. Raises `HutchError`, and the old one stays."""
        async with self._turn(session_id):
            return await self._update(session_id, network, spec)

    def _turn(self, session_id: str) -> asyncio.Lock:
        return self._turns.setdefault(session_id, asyncio.Lock())

    async def _update(self, session_id: str, network: Network, spec: NetworkSpec) -> Applied:
        before = self._states.get(session_id)
        if before is None:
            raise NotFoundError("session_not_found", f"The host has no session '{session_id}'.")
        after = _with_placeholders(msgspec.structs.replace(before, network=spec), before.placeholders)
        await self._put(session_id, after)
        try:
            return await self._gateway.set_policy(network, after.message(session_id))
        except HutchError:
            await self._put(session_id, before)
            raise

    async def change_credential(self, session_id: str, network: Network, name: str, value: str | None) -> None:
        """Use another value of a stored credential, or none, if the session's policy names it."""
        async with self._turn(session_id):
            state = self._states.get(session_id)
            if state is None or not _names(state, name):
                return
            credentials = {key: known for key, known in state.network.credentials.items() if key != name}
            if value is not None:
                credentials[name] = value
            await self._update(session_id, network, msgspec.structs.replace(state.network, credentials=credentials))

    async def resume(self, session_id: str, network: Network) -> None:
        """Have the gateway told, when it is next told everything, what holds for an adopted session."""
        state = self._states.get(session_id)
        if state is not None:
            await self._gateway.set_policy(network, state.message(session_id), announce=False)

    async def forget(self, session_id: str) -> None:
        """Nothing holds for an ended session."""
        if session_id in self._states:
            await self._journal.delete_egress(session_id)
            self._states.pop(session_id, None)

    async def keep_only(self, session_ids: set[str]) -> None:
        """Forget whatever belongs to no live session."""
        for session_id in self._states.keys() - session_ids:
            await self.forget(session_id)

    async def _put(self, session_id: str, state: State) -> None:
        if self._states.get(session_id) == state:
            # A control plane that starts sends everything again.
            return
        sealed = self._sealer.seal(msgspec.to_builtins(state), session_id)
        await self._journal.put_egress(session_id, sealed)
        self._states[session_id] = state


def _names(state: State, credential: str) -> bool:
    """Whether a policy may name a credential; a policy that only looks as if it did is told for nothing."""
    return state.network.policy is not None and f'"{credential}"' in state.network.policy


def _with_placeholders(state: State, known: list[Placeholder]) -> State:
    """`state` with a text for each placeholder that its policy names; those that were there keep theirs."""
    policy = state.network.policy
    # Most policies have none; only one that may is looked into.
    wanted = check_policy(policy).placeholders if policy is not None and '"placeholder"' in policy else ()
    texts = {(placeholder.variable, placeholder.credential): placeholder for placeholder in known}
    placeholders = [
        texts.get((variable, credential)) or Placeholder(variable, credential, PLACEHOLDER_PREFIX + secrets.token_hex(24))
        for variable, credential in wanted
    ]
    return msgspec.structs.replace(state, placeholders=placeholders)
