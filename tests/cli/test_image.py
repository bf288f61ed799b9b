"""`hutch image`: against the real API over a fake host, and an image of a real registry in a real sandbox."""

from __future__ import annotations

import json

import pytest

from tests.api.conftest import Api
from tests.cli.conftest import AsyncHutch, Hutch
from tests.oci.images import small
from tests.oci.registry import RunningRegistry

REFERENCE = "registry.example.com/team/app:1"


async def test_one_is_pulled_shown_and_removed(api: Api, ask: AsyncHutch) -> None:
    pulled = await ask("image", "pull", REFERENCE, "--name", "mine")
    assert pulled.out == f"mine sha256:{1:064x}\n"
    listed = (await ask("image", "ls")).out.splitlines()
    assert listed[0].split() == ["NAME", "ALSO", "DIGEST", "SIZE"]
    assert listed[2].split()[:3] == ["mine", REFERENCE, "0" * 12]
    assert (await ask("image", "rm", "mine", REFERENCE)).code == 0
    assert [one["name"] for one in json.loads((await ask("image", "ls", "--json")).out)["images"]] == [
        "vercel/sandbox/universal:latest"
    ]
    gone = await ask("image", "rm", "mine")
    assert (gone.code, "image_not_found" in gone.err) == (1, True)
    shared = json.loads((await ask("image", "pull", REFERENCE, "--shared", "--json")).out)
    assert shared["shared"] is True
    assert (await ask("image", "rm", REFERENCE, "--shared", "--json")).code == 0


async def test_a_login_is_read_from_standard_input(api: Api, ask: AsyncHutch) -> None:
    assert (await ask("image", "login", "registry.example.com", "-u", "joe", stdin=b"secret\n")).code == 0
    await ask("image", "pull", REFERENCE)
    assert (api.host.pulls[0].username, api.host.pulls[0].password) == ("joe", "secret")
    assert (await ask("image", "logout", "registry.example.com")).code == 0
    assert (await ask("image", "logout", "registry.example.com")).code == 1


@pytest.mark.sandbox
@pytest.mark.root
def test_an_image_is_pulled_run_and_kept_while_a_sandbox_needs_it(hutch: Hutch, registry: RunningRegistry) -> None:
    reference = registry.push("tests/kept", "1", small(Labels={"of": "this test alone"}))
    pulled = hutch("image", "pull", reference, "--name", "small")
    assert pulled.code == 0, pulled.err
    assert "small:latest" in hutch("image", "ls").out
    ran = hutch("run", "--image", "small", "--", "sh", "-c", "id -un; pwd")
    assert (ran.code, ran.out) == (0, "joe\n/srv\n")
    assert hutch("create", "--name", "needs-small", "--image", "small", "--ephemeral").code == 0
    try:
        names = [one["name"] for one in json.loads(hutch("image", "ls", "--json").out)["images"] if one["digest"] in pulled.out]
        assert {"small:latest", reference} <= set(names)
        assert hutch("image", "rm", reference).code == 0
        refused = hutch("image", "rm", "small", "--json")
        assert json.loads(refused.err)["error"]["code"] == "image_in_use"
        assert json.loads(refused.err)["error"]["users"][0].startswith("sbx_")
    finally:
        hutch("rm", "needs-small")
    assert hutch("image", "rm", "small").code == 0
    assert hutch("run", "--image", "small", "--", "true").code == 125
