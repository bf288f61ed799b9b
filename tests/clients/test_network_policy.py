"""Network policies as the vendor's clients send and read them, over the real API and a fake host."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from vercel.sandbox import NetworkPolicy, SandboxApiError, SandboxClient, SandboxCredentials, SandboxServiceOptions

from hutch.cli.env import variables
from hutch.client import Server
from tests.api.conftest import Api, api, environment, host, installed
from tests.clients.conftest import node_tool

__all__ = ["api", "environment", "host", "installed"]

pytestmark = [pytest.mark.clients]


async def test_javascript(api: Api, javascript_sdk: Path) -> None:
    server = Server(api.url, api.own.token, api.own.team_id, api.own.project_id)
    done = await asyncio.to_thread(
        subprocess.run,
        [node_tool("node"), "--test", "--test-reporter=spec", "network-policy.test.mjs"],
        cwd=javascript_sdk,
        env=os.environ | variables(server, os.environ),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass 4" in done.stdout
    assert all(
        "secret-value" in str(spec.network.policy) for spec in api.host.specs.values() if "api." in str(spec.network.policy)
    )


@pytest.mark.section("14.3")
async def test_python(api: Api) -> None:
    async def factory() -> SandboxCredentials:
        return SandboxCredentials(token=api.own.token, team_id=api.own.team_id, project_id=api.own.project_id)

    options = SandboxServiceOptions(base_url=f"{api.url}/api", credentials_factory=factory)
    client = SandboxClient.create(options=options)
    try:
        rules = [{"transform": [{"headers": {"authorization": "Bearer secret-value"}}]}, {"response": {"statusCode": 403}}]
        policy = {
            "allow": {"a.test": rules, "b.test": [{"forwardURL": "https://p.test"}]},
            "subnets": {"allow": ["203.0.113.0/24"]},
        }
        await api.create(name="one", networkPolicy=policy)
        read = (await client.get_sandbox(name="one")).network_policy
        assert read is not None
        assert (read.mode, read.allowed_domains) == ("custom", ("a.test", "b.test"))
        assert [(rule.domain, rule.header_names) for rule in read.injection_rules] == [("a.test", ("authorization",))]
        assert [rule.forward_url for rule in read.forward_rules] == ["https://p.test"]
        assert [(rule.domain, rule.status_code) for rule in read.response_rules] == [("a.test", 403)]
        sandbox = await client.get_sandbox(name="one")
        await sandbox.update(network_policy=NetworkPolicy.deny_all())
        later = (await client.get_sandbox(name="one")).network_policy
        assert later is not None
        assert later.mode == "deny-all"
        assert api.host.networks[sandbox.current_session_id].policy == '{"mode":"deny-all"}'
        with pytest.raises(SandboxApiError) as refused:
            await sandbox.update(network_policy=NetworkPolicy.custom({"api*.test": []}))
        assert (refused.value.status_code, refused.value.code) == (400, "invalid_network_policy")
    finally:
        await client.aclose()
