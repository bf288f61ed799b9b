"""Runs without a defence, in which the tests that are about it must fail.

A test names what it would notice the absence of:

    @pytest.mark.defence("domain-patterns")
    async def test_t01_…

`test_defences.py` runs every such test once without it, as a run of pytest of its own with `HUTCH_DEFENCES_OFF=NAME,…`. A
defence is a line of the kernel's rules or a step of the host (`HOST`, here), or a condition in the gateway and the policy
engine (`crates/policy/src/defence.rs`), which only a build with the feature `defences-off` can be without.

To be imported before anything of `hutch`: the engine of such a build takes the place of the installed one.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "HUTCH_DEFENCES_OFF"
ENGINE_VARIABLE = "HUTCH_TEST_ENGINE"
"""Another build of the policy engine, a path."""


def _without(*lines: str) -> Callable[[], None]:
    """The kernel's rules without the lines that begin so."""

    def patch() -> None:
        from hutch.host import network

        for line in lines:
            pattern = rf"^ *{re.escape(line)}.*\n"
            rest, count = re.subn(pattern, "", network._RULES, flags=re.MULTILINE)
            assert count, f"no rule begins with {line}"
            network._RULES = rest

    return patch


def _ingress_without(*lines: str) -> Callable[[], None]:
    """The kernel's rules about the ingress without the lines that say so."""

    def patch() -> None:
        from hutch.host import network

        for line in lines:
            rest, count = re.subn(rf"^\w+ rule inet {{table}} {re.escape(line)}\n", "", network._INGRESS, flags=re.MULTILINE)
            assert count, f"no rule about the ingress is {line}"
            network._INGRESS = rest

    return patch


def _answers_for_anybody() -> None:
    """What answers whatever socket of this machine is let in."""
    from hutch.host import network

    rules = network._INGRESS.replace("meta mark {mark} meta skuid {user} accept", "meta mark {mark} accept")
    assert rules != network._INGRESS
    network._INGRESS = rules


def _never_dropped() -> None:
    """A machine that routes, and rules that let through what is handed to nobody."""
    _without('iifname "{links}*" meta mark != {mark}', 'iifname "{links}*" drop', 'oifname "{links}*" drop')()
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _without_cookies() -> None:
    """A machine that remembers each connection that somebody begins."""
    Path("/proc/sys/net/ipv4/tcp_syncookies").write_text("0")


def _links_with_ipv6() -> None:
    _without("meta nfproto != ipv4", 'oifname "{links}*" meta nfproto ipv6 drop')()
    from hutch.host.network import Network, Networks

    make = Networks._make

    def with_ipv6(self: Networks, number: int) -> Network:
        network = make(self, number)
        Path(f"/proc/sys/net/ipv6/conf/{network.link}/disable_ipv6").write_text("0")
        return network

    Networks._make = with_ipv6  # type: ignore[method-assign]


def _handed_to_nobody() -> None:
    from hutch.host import network

    network._HAND = ""


def _only_questions_are_handed() -> None:
    from hutch.host import network

    lines = network._HAND.splitlines(keepends=True)
    udp = lines[-1].replace("ip protocol udp", "udp dport 53")
    assert udp != lines[-1]
    network._HAND = "".join([*lines[:2], udp])


def _joined_before_they_are_seen() -> None:
    from hutch.host import network

    network.BEFORE_REASSEMBLY = -350


def _any_neighbour() -> None:
    from hutch.host import network

    network._NEIGHBOURS = network._NEIGHBOURS.replace("@bound drop", "@bound accept")


def _gateway_goes_anywhere() -> None:
    from hutch.host import network

    network.Networks.close_addresses = lambda *_: None  # type: ignore[method-assign]


def _one_authority() -> None:
    from hutch.host import authority

    derive = authority.derive

    def one(secret: bytes, machine_id: str, now: datetime.datetime | None = None) -> authority.Authority:
        return derive(secret, "every machine", now)

    authority.derive = one


def _updates_without_order() -> None:
    from hutch.host.gateway import Gateway
    from hutch.host.network import Network

    set_policy = Gateway.set_policy

    async def at_once(self: Gateway, network: Network, policy: dict[str, Any], *, announce: bool = True) -> Any:
        self._known[network.guest_address].turn = contextlib.nullcontext()  # type: ignore[assignment]
        return await set_policy(self, network, policy, announce=announce)

    Gateway.set_policy = at_once  # type: ignore[method-assign]


def _forgotten_policies() -> None:
    from hutch.host.gateway import Gateway

    sync = Gateway._sync

    async def forgetful(self: Gateway) -> None:
        for known in self._known.values():
            if self.restarts and known.policy is not None:
                known.policy |= {"policy": None}
        await sync(self)

    Gateway._sync = forgetful  # type: ignore[method-assign]


def _counting_anew() -> None:
    from hutch.host.gateway import Gateway

    Gateway.resume_counters = lambda *_: None  # type: ignore[method-assign]


HOST: dict[str, Callable[[], None]] = {
    "kernel-source": _without("iifname . ip saddr != @bound"),
    "kernel-ipv4-only": _links_with_ipv6,
    "kernel-options": _without("ip hdrlength > 5"),
    "kernel-guests": _without('oifname "{links}*" meta skuid'),
    "kernel-drop": _never_dropped,
    "kernel-hand": _handed_to_nobody,
    "kernel-hand-others": _only_questions_are_handed,
    "kernel-fragments": _joined_before_they_are_seen,
    "kernel-arp": _any_neighbour,
    "kernel-gateway": _gateway_goes_anywhere,
    "ingress-guests": _ingress_without("to_guests drop"),
    "ingress-others": _ingress_without("to_others tcp flags & (syn | ack) == syn drop"),
    "ingress-datagrams": _ingress_without("to_others meta l4proto != tcp drop"),
    "ingress-answers": _answers_for_anybody,
    "syn-cookies": _without_cookies,
    "own-authority": _one_authority,
    "counters-again": _counting_anew,
    "policies-again": _forgotten_policies,
    "update-order": _updates_without_order,
}


def off() -> list[str]:
    """The defences that this run is without."""
    return [name for name in os.environ.get(VARIABLE, "").split(",") if name]


def of_the_gateway() -> list[str]:
    """Those that the gateway is to be without."""
    return [name for name in off() if name not in HOST]


def _load_engine(path: Path) -> None:
    name = "hutch.egress.hutch_native"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module: Any = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    sys.modules[name] = module


if ENGINE_VARIABLE in os.environ:
    _load_engine(Path(os.environ[ENGINE_VARIABLE]))


def switch_off() -> None:
    """Do without them, in this process and in the gateways that it starts."""
    if not off():
        return
    from hutch.host import kernel

    for name in off():
        HOST.get(name, lambda: None)()
    environment = kernel.command_environment
    kernel.command_environment = lambda: environment() | {VARIABLE: ",".join(of_the_gateway())}
    # The engine in this process reads the same variable.
    os.environ[VARIABLE] = ",".join(of_the_gateway())
