"""What the vendor's command line makes of refusals: an exit code that is not 0, and a sentence that helps."""

from __future__ import annotations

import asyncio

import pytest

from hutch.client import AsyncClient, Server
from hutch.client.models import Token
from tests.clients.cli.conftest import CommandLine

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(180)]


@pytest.mark.section("4.6")
@pytest.mark.parametrize(
    "command", ["exec NAME true", "stop NAME", "rm NAME", "config list NAME", "fork NAME", "snapshot --stop NAME"]
)
def test_an_unknown_sandbox(cli: CommandLine, command: str) -> None:
    """§4.6: 404 with the name in the message."""
    done = cli(*command.replace("NAME", "no-such-one").split())
    assert done.code == 1, done
    assert "no-such-one" in done.out + done.err


@pytest.mark.section("2.2")
@pytest.mark.parametrize(
    "command", ["frobnicate", "create --no-such-flag", "exec", "config nothing box", "sh ls", "run --rm --stop true"]
)
def test_an_unknown_command_is_the_command_lines_own_error(cli: CommandLine, command: str) -> None:
    """§2.2: these never reach the server."""
    done = cli(*command.split())
    assert (done.code, done.out) == (1, "")
    assert done.err.strip()


@pytest.mark.section("3.3")
@pytest.mark.section("2.2")
def test_a_token_that_is_not_the_servers(cli: CommandLine) -> None:
    """§3.3: 401, with a sentence; nothing is listed. A token without claims has its scope from `--scope` and `--project`."""
    # With this one the SDK below would take a fresh token from the environment instead.
    none: dict[str, str | None] = {"VERCEL_OIDC_TOKEN": None}
    forged = cli.server.token[:-4] + ("AAAA" if cli.server.token[-4:] != "AAAA" else "BBBB")
    for arguments in (
        ["list", "--token", forged],
        ["list", "--token", "opaque", "--scope", cli.server.team_id, "--project", cli.server.project_id],
    ):
        done = cli(*arguments, environment=none)
        assert (done.code, done.out) == (1, ""), done
        assert "401" in done.err


async def _member(server: Server) -> Token:
    async with AsyncClient(server) as client:
        return await client.tokens.create(team="strangers", project="theirs", role="member")


@pytest.mark.section("3.3")
def test_a_team_or_project_that_is_not_the_tokens(cli: CommandLine, box: str) -> None:
    """§3.3: 403, and what others have is neither shown nor touched. (An administrator's token may use every project.)"""
    theirs = asyncio.run(_member(cli.server)).token
    own: dict[str, str | None] = {"VERCEL_AUTH_TOKEN": theirs, "VERCEL_OIDC_TOKEN": None}
    mine = ["--scope", cli.server.team_id, "--project", cli.server.project_id]
    for arguments in (["list", *mine], ["exec", *mine, box, "true"], ["rm", *mine, box], ["create", *mine, "--name", "planted"]):
        done = cli(*arguments, environment=own)
        assert done.code == 1, done
        assert "no access" in done.err, done
    assert cli("exec", box, "true", environment=own).code == 1
    assert [line.split()[0] for line in cli.good("list", "--all").splitlines()[1:]] == [box]


@pytest.mark.section("2.2")
def test_a_token_in_any_of_its_places(cli: CommandLine) -> None:
    """§2.2: `--token`, `VERCEL_AUTH_TOKEN`, `VERCEL_OIDC_TOKEN`, in this order; scope comes from the token's claims."""
    token = cli.server.token
    none: dict[str, str | None] = dict.fromkeys(
        ("VERCEL_AUTH_TOKEN", "VERCEL_OIDC_TOKEN", "VERCEL_TOKEN", "VERCEL_TEAM_ID", "VERCEL_PROJECT_ID")
    )
    assert cli("list", "--token", token, environment=none).code == 0
    assert cli("list", environment=none | {"VERCEL_AUTH_TOKEN": token}).code == 0
    assert cli("list", environment=none | {"VERCEL_OIDC_TOKEN": token}).code == 0


@pytest.mark.section("6.1")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--name", "no blanks"], "name"),
        (["--name", "x" * 129], "name"),
        (["--image", "Not A Reference"], "image"),
        (["--vcpus", "64"], "vcpus"),
        (["--timeout", "30d"], "timeout"),
        (["--publish-port", "80"], "port"),
        (["--mount", "nothing:/data"], "drive"),
        (["--mount", "nothing:/"], "mount"),
        (["--allowed-domain", "api*.example.com"], "whole label"),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, list) else None,
)
def test_a_create_that_can_not_be_meant(cli: CommandLine, arguments: list[str], said: str) -> None:
    """§6.1: 4xx that names what is wrong; there is no sandbox afterwards."""
    done = cli("create", "--silent", *arguments)
    assert (done.code, done.out) == (1, ""), done
    assert said in done.err.lower()
    assert len(cli.good("list", "--all").splitlines()) == 1


@pytest.mark.section("4.5")
def test_a_name_that_is_taken(cli: CommandLine, box: str) -> None:
    """§4.5: 409."""
    done = cli("create", "--name", box)
    assert (done.code, done.out) == (1, "")
    assert "409" in done.err


@pytest.mark.section("4.4")
def test_a_server_that_is_not_there(cli: CommandLine) -> None:
    """§4.4: after its retries the command line says that it could not connect; it does not hang."""
    done = cli("list", environment={"HUTCH_URL": "http://127.0.0.1:9"})
    assert (done.code, done.out) == (1, "")
    assert "fetch failed" in done.err
