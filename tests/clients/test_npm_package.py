"""The npm package `@hutch/redirect`, packed and installed beside the real `@vercel/sandbox`, as a user would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hutch.glue import NPM_PACKAGE, REDIRECT_MODULE, write_npm_package
from scripts.setup import node
from tests.clients.conftest import node_tool, tool_path
from tests.conftest import CHECKOUT, RunningServer

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(180)]

MAKES_ONE = """
const sandbox = await Sandbox.create({ persistent: false });
try {
  console.log(await (await sandbox.runCommand("echo", ["answered"])).stdout());
} finally {
  await sandbox.delete();
}
"""
COUNTS = """
const seen = [];
globalThis.fetch = async (input, init) => {
  const method = input instanceof Request ? input.method : init?.method;
  seen.push([input?.url ?? String(input), init?.dispatcher !== undefined, method]);
  return new Response("{}");
};
"""


@pytest.fixture(scope="module")
def project(javascript_sdk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the packed package and the SDK of the tests' lock file."""
    directory = tmp_path_factory.mktemp("project")
    npm = [node_tool("npm"), "--no-audit", "--no-fund", "--loglevel=error"]
    own = os.environ | {"PATH": tool_path()}
    packed = subprocess.run(
        [*npm, "pack", "--json", "--pack-destination", directory],
        cwd=NPM_PACKAGE,
        env=own,
        capture_output=True,
        check=True,
        text=True,
    )
    (tarball,) = [path.name for path in directory.glob("*.tgz")]
    assert '"redirect.mjs"' in packed.stdout
    assert not (NPM_PACKAGE / "redirect.mjs").exists(), "the one copy stays where it is"
    (directory / "package.json").write_text(json.dumps({"name": "project", "private": True, "type": "module"}))
    subprocess.run([*npm, "install", "--offline", f"./{tarball}"], cwd=directory, env=own, capture_output=True, check=True)
    shutil.copytree(javascript_sdk / "node_modules", directory / "node_modules", dirs_exist_ok=True, symlinks=True)
    return directory


@pytest.fixture
def own(server: RunningServer) -> dict[str, str]:
    """Credentials, and nothing that redirects."""
    where = server.where
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HUTCH_", "VERCEL_", "NODE_OPTIONS"))}
    return plain | {"VERCEL_TOKEN": where.token, "VERCEL_OIDC_TOKEN": where.token, "PATH": tool_path()}


def run(
    project: Path, program: str, environment: dict[str, str], *flags: str, program_file: str | Path = "", name: str = "p.mjs"
) -> str:
    (project / name).write_text(program)
    done = subprocess.run(
        [program_file or node_tool("node"), *flags, name],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


SDK = 'import { Sandbox } from "@vercel/sandbox";\n'


@pytest.mark.parametrize("version", node.VERSIONS)
def test_imported_with_the_variable(
    version: str, project: Path, own: dict[str, str], server: RunningServer, leak_check: None
) -> None:
    environment = own | {"HUTCH_URL": server.where.url}
    program = node.directory(version) / "bin" / "node"
    assert run(project, f'import "@hutch/redirect";\n{SDK}{MAKES_ONE}', environment, program_file=program) == "answered\n\n"


def test_told_in_the_program(project: Path, own: dict[str, str], server: RunningServer, leak_check: None) -> None:
    told = f'import {{ redirect }} from "@hutch/redirect";\nredirect({{ url: new URL("{server.where.url}/api/") }});\n'
    assert run(project, f"{SDK}{told}{MAKES_ONE}", own) == "answered\n\n"


@pytest.mark.parametrize("version", node.VERSIONS)
def test_required(version: str, project: Path, own: dict[str, str], server: RunningServer, leak_check: None) -> None:
    installed = node.directory(version) / "bin" / "node"
    program = f"""
const {{ redirect }} = require("@hutch/redirect");
redirect({{ url: "{server.where.url}" }});
const {{ Sandbox }} = require("@vercel/sandbox");
(async () => {{ {MAKES_ONE} }})();
"""
    assert (
        run(project, program, own, "--disable-warning=ExperimentalWarning", program_file=installed, name="p.cjs")
        == "answered\n\n"
    )


def test_preloaded_by_name(project: Path, own: dict[str, str], server: RunningServer, leak_check: None) -> None:
    environment = own | {"HUTCH_URL": server.where.url}
    assert run(project, f"{SDK}{MAKES_ONE}", environment, "--import", "@hutch/redirect") == "answered\n\n"


def test_workers_and_child_processes(project: Path, own: dict[str, str], server: RunningServer, leak_check: None) -> None:
    """NODE_OPTIONS reaches both; without it each imports the package."""
    (project / "one.mjs").write_text(f"{SDK}{MAKES_ONE}")
    (project / "importing.mjs").write_text(f'import "@hutch/redirect";\n{SDK}{MAKES_ONE}')
    program = """
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { Worker } from "node:worker_threads";
const which = process.argv[2] ?? process.env.WHICH;
await once(new Worker(new URL(which, import.meta.url)), "exit");
const child = spawnSync(process.execPath, [which], { encoding: "utf8" });
console.log(child.status, child.stdout, child.stderr);
"""
    variables = own | {"HUTCH_URL": server.where.url}
    preloaded = variables | {"NODE_OPTIONS": f"--import {REDIRECT_MODULE.as_uri()}"}
    for environment, which in ((preloaded, "one.mjs"), (variables, "importing.mjs")):
        assert run(project, program, environment | {"WHICH": which}) == "answered\n\n0 answered\n\n \n"


def test_requests_in_every_form_and_nothing_else(project: Path, own: dict[str, str]) -> None:
    """Strings, URLs, Requests, dispatchers: redirected with what came with them; others pass."""
    program = f"""{COUNTS}
const {{ redirect }} = await import("@hutch/redirect");
redirect({{ url: "http://first.test" }});
redirect({{ url: "http://second.test/api/" }});
await fetch("https://vercel.com/api/v2/x?y=1", {{ method: "PUT", dispatcher: {{}} }});
await fetch(new URL("https://vercel.com/api"));
await fetch(new Request("https://vercel.com/api/v2/z", {{ method: "POST", body: "b" }}));
await fetch("https://vercel.com/api?q");
await fetch("https://vercel.com/apiary");
await fetch("https://vercel.com.test/api/v2/x");
await fetch("http://vercel.com/api/v2/x");
const health = await fetch("https://second.test/health");
console.log(JSON.stringify([seen, health.status]));
"""
    seen, health = json.loads(run(project, program, own))
    assert seen == [
        ["http://second.test/api/v2/x?y=1", True, "PUT"],
        ["http://second.test/api", False, None],
        ["http://second.test/api/v2/z", False, "POST"],
        ["http://second.test/api?q", False, None],
        ["https://vercel.com/apiary", False, None],
        ["https://vercel.com.test/api/v2/x", False, None],
        ["http://vercel.com/api/v2/x", False, None],
    ]
    assert health == 200


def test_wrapped_by_somebody_and_told_again(project: Path, own: dict[str, str]) -> None:
    program = f"""{COUNTS}
const {{ redirect }} = await import("@hutch/redirect");
redirect({{ url: "http://first.test" }});
const below = globalThis.fetch;
globalThis.fetch = (input, init) => below(input, init);
redirect({{ url: "http://second.test" }});
await fetch("https://vercel.com/api/v2/x");
console.log(JSON.stringify(seen.map(([url]) => url)));
"""
    assert json.loads(run(project, program, own)) == ["http://second.test/api/v2/x"]


def test_imported_twice_from_two_copies(project: Path, own: dict[str, str], server: RunningServer, leak_check: None) -> None:
    environment = own | {"HUTCH_URL": server.where.url, "NODE_OPTIONS": f"--import {REDIRECT_MODULE.as_uri()}"}
    assert run(project, f'import "@hutch/redirect";\n{SDK}{MAKES_ONE}', environment) == "answered\n\n"


def test_without_a_url_it_says_what_it_wants(project: Path, own: dict[str, str]) -> None:
    program = 'import { redirect } from "@hutch/redirect";\ntry { redirect() } catch (e) { console.log(e.name, e.message) }'
    assert run(project, program, own).startswith("TypeError redirect() needs the server's URL")


def test_hutch_env_writes_the_same_package(project: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hutch", "env", "--npm-package", str(tmp_path / "package")]
    assert subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True, timeout=60).stdout == b""
    installed = project / "node_modules" / "@hutch" / "redirect"
    for name in ("redirect.mjs", "redirect.d.mts", "README.md"):
        assert (tmp_path / "package" / name).read_bytes() == (installed / name).read_bytes()
    refused = subprocess.run([*command[:-1], "/proc/none"], cwd=CHECKOUT, capture_output=True, check=False, timeout=60)
    assert refused.returncode == 2
    write_npm_package(tmp_path / "package")
