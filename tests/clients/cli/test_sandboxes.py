"""`sandbox create`, `list`, `exec`, `run`, `stop`, `remove`, `fork`, `sessions`: the vendor's command line on a real server."""

from __future__ import annotations

import json
import re

import pytest

from tests.clients.cli.conftest import CommandLine

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(180)]


def rows(table: str) -> list[dict[str, str]]:
    """A printed table by its heads. Cells are cut where the heads begin, because they may be empty or have spaces."""
    head, *lines = [line for line in table.splitlines() if line.strip()]
    names = [(found[0].strip(), found.start()) for found in re.finditer(r"\S+(?: \S+)*\s*", head)]
    ends = [start for _, start in names[1:]] + [None]
    return [{name: line[start:end].strip() for (name, start), end in zip(names, ends, strict=True)} for line in lines]


def configuration(cli: CommandLine, name: str) -> dict[str, str]:
    return {row["FIELD"]: row["VALUE"] for row in rows(cli.good("config", "list", name))}


@pytest.mark.section("2.2")
@pytest.mark.section("6.1")
def test_create_says_the_name_on_its_output_and_the_rest_beside_it(cli: CommandLine) -> None:
    """§2.2, §6.1: scope from the token's claims; `interactivePort` is there; only the name goes to stdout."""
    made = cli("create", "--name", "named-one")
    assert (made.code, made.out) == (0, "named-one")
    assert f"team: {cli.server.team_id}" in made.err
    assert f"project: {cli.server.project_id}" in made.err
    assert "region: iad1" in made.err
    assert "connect with: sandbox ssh named-one" in made.err


@pytest.mark.section("6.1")
@pytest.mark.section("2.2")
def test_create_passes_every_option(cli: CommandLine) -> None:
    """§6.1: tags, variables, size, time, ports, snapshot settings and policy arrive; `config list` reads them back."""
    made = cli(
        *["create", "--name", "full", "--tag", "team=web", "--tag", "stage=a=b", "--env", "GREETING=good day", "--vcpus", "1"],
        *[
            "--timeout",
            "10m",
            "--publish-port",
            "3000",
            "-p",
            "8080",
            "--snapshot-expiration",
            "7d",
            "--keep-last-snapshots",
            "3",
        ],
        *["--keep-last-snapshots-for", "30d", "--allowed-domain", "*.example.com", "--allowed-cidr", "192.0.2.0/24"],
    )
    assert made.code == 0, made.err
    assert re.search(r"3000 -> \S*sb-[0-9a-z]{12}\.", made.err)
    found = configuration(cli, "full")
    assert found["vCPUs"] == "1"
    assert found["Timeout"] == "10 minutes"
    assert found["Ports"] == "3000, 8080"
    assert found["Network policy"] == "restricted"
    assert found["Persistent"] == "true"
    assert "7 days" in found["Snapshot expiration"]
    assert "3" in found["Keep last snapshots"]
    assert found["Tags"] == "team=web, stage=a=b"
    assert cli.good("exec", "full", "printenv", "GREETING") == "good day\n"


@pytest.mark.section("6.1")
def test_silent_creates_say_nothing(cli: CommandLine) -> None:
    """§6.1: `--silent` prints nothing, on either stream."""
    made = cli("create", "--silent", "--non-persistent", "--name", "quiet")
    assert (made.code, made.out, made.err) == (0, "", "")
    assert configuration(cli, "quiet")["Persistent"] == "false"


@pytest.mark.section("6.1")
def test_an_older_runtime_is_an_image(cli: CommandLine) -> None:
    """§6.1: `--runtime` goes to /v2, and the program of that name is there."""
    cli.good("create", "--silent", "--non-persistent", "--runtime", "node22", "--name", "older")
    assert cli.good("exec", "older", "node", "-p", "process.version.split('.')[0]") == "v22\n"


@pytest.mark.section("16.2")
def test_an_image_of_a_registry(cli: CommandLine, small_image: str) -> None:
    """§16.2: `--image` takes an image that the server pulls."""
    cli.good("create", "--silent", "--non-persistent", "--image", small_image, "--name", "pulled")
    assert cli.good("exec", "pulled", "sh", "-c", "id -un; pwd") == "joe\n/srv\n"


@pytest.mark.section("6.3")
def test_list_shows_filters_sorts_and_pages(cli: CommandLine) -> None:
    """§6.3: running ones only unless `--all`; prefix, tag, order, `limit` and `cursor` as asked for."""
    for name, tag in (("list-b", "x=1"), ("list-a", "x=2"), ("other", "x=1")):
        cli.good("create", "--silent", "--name", name, "--tag", tag)
    cli.good("stop", "other")

    def names(*arguments: str) -> list[str]:
        return [row["NAME"] for row in rows(cli.good("list", *arguments))]

    assert names() == ["list-a", "list-b"]
    assert names("--all") == ["other", "list-a", "list-b"]
    assert names("--all", "--sort-order", "asc") == ["list-b", "list-a", "other"]
    assert names("--sort-by", "name", "--sort-order", "asc", "--name-prefix", "list-") == ["list-a", "list-b"]
    assert names("--all", "--tag", "x=1") == ["other", "list-b"]
    first = cli("ls", "--all", "--limit", "2")
    assert [row["NAME"] for row in rows(first.out.split("More results")[0])][:2] == ["other", "list-a"]
    found = re.search(r"--cursor[= ](\S+)", first.out + first.err)
    assert found is not None, first
    assert names("--all", "--limit", "2", "--cursor", found[1].strip("'\"`")) == ["list-b"]
    stopped = next(row for row in rows(cli.good("list", "--all")) if row["NAME"] == "other")
    assert stopped["STATUS"] == "stopped"
    assert stopped["SNAPSHOT"].startswith("snap_")


@pytest.mark.section("8.1")
@pytest.mark.section("2.2")
def test_exec_keeps_streams_apart_and_passes_the_exit_code(cli: CommandLine, box: str) -> None:
    """§8.1: stdout and stderr on their own streams, the exit code is the program's."""
    ran = cli("exec", box, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (ran.code, ran.out) == (7, "out\n")
    assert ran.err.splitlines()[1:] == ["err"], "the first line is the command line's own"


@pytest.mark.section("8.1")
@pytest.mark.section("16.4")
def test_exec_has_directory_variables_and_sudo(cli: CommandLine, box: str) -> None:
    """§8.1, §16.4: `--workdir`, `--env`, `--sudo`; a variable without a value is taken from one's own."""
    script = "pwd; echo $A; echo $B; id -un; echo $HOME"
    ran = cli("exec", "--workdir", "/tmp", "--env", "A=1=2", "-e", "B", box, "sh", "-c", script, environment={"B": "mine"})
    assert (ran.code, ran.out) == (0, "/tmp\n1=2\nmine\nubuntu\n/vercel\n")
    assert cli.good("exec", "--sudo", box, "sh", "-c", "id -un; echo $HOME; echo $SUDO_USER") == "root\n/root\nubuntu\n"


@pytest.mark.section("8.1")
def test_exec_kills_what_takes_too_long(cli: CommandLine, box: str) -> None:
    """§8.1: `--timeout` is the command's: SIGKILL and exit code 137."""
    ran = cli("exec", "--timeout", "1s", box, "sleep", "100")
    assert (ran.code, ran.out) == (137, "")
    assert "SIGKILL" in ran.err


@pytest.mark.section("4.6")
@pytest.mark.section("8.1")
def test_exec_of_a_program_that_is_not_there(cli: CommandLine, box: str) -> None:
    """§4.6: 400 `executable_not_found`, which the command line shows with exit code 1."""
    ran = cli("exec", box, "no-such-program")
    assert (ran.code, ran.out) == (1, "")
    assert "executable file not found in $PATH: no-such-program" in ran.err
    assert "status code: 400" in ran.err


@pytest.mark.section("8.1")
def test_exec_passes_arguments_exactly(cli: CommandLine, box: str) -> None:
    """§8.1: there is no shell between: quotes, blanks, newlines, other scripts. (The command line drops empty ones itself.)"""
    odd = [" ", "a b", "\"'`$HOME\\", "line\nline", "naïve — 漢字 🦫", "-n", "--", "*"]
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    assert json.loads(cli.good("exec", box, "--", "python3", "-c", code, *odd)) == odd


@pytest.mark.section("8.1")
def test_exec_gives_the_program_no_input(cli: CommandLine, box: str) -> None:
    """§8.1: without a terminal the command line sends no input, and the program sees the end of it at once."""
    assert cli.good("exec", box, "sh", "-c", "cat; echo end", stdin=b"not sent\n") == "end\n"


@pytest.mark.section("8.1")
@pytest.mark.section("8.3")
def test_exec_of_much_output_is_complete(cli: CommandLine, box: str) -> None:
    """§8.1, §8.3: twenty megabytes arrive whole and in order, also characters of several bytes."""
    lines = 400_000
    ran = cli("exec", box, "python3", "-c", f"for i in range({lines}): print(f'{{i:07}} é漢 ' + 'x' * 35)")
    assert ran.code == 0
    assert ran.out == "".join(f"{i:07} é漢 " + "x" * 35 + "\n" for i in range(lines))


@pytest.mark.section("13.3")
@pytest.mark.section("6.2")
def test_exec_starts_a_stopped_sandbox_again(cli: CommandLine) -> None:
    """§13.3: `exec` asks with `resume=true`; files are there, in a new session."""
    cli.good("create", "--silent", "--name", "again")
    cli.good("exec", "again", "sh", "-c", "echo kept > file")
    cli.good("stop", "again")
    assert cli.good("exec", "again", "cat", "file") == "kept\n"
    assert len(rows(cli.good("sessions", "list", "--all", "again"))) == 2
    assert [row["STATUS"] for row in rows(cli.good("sessions", "list", "again"))] == ["running"]


@pytest.mark.section("2.2")
@pytest.mark.section("6.5")
def test_run_makes_runs_and_removes(cli: CommandLine) -> None:
    """§2.2: `run --rm`: one command for create, exec and remove; the exit code is the program's, and nothing is left."""
    ran = cli("run", "--rm", "--silent", "--", "sh", "-c", "echo $((6 * 7)); exit 9")
    assert (ran.code, ran.out) == (9, "42\n")
    assert rows(cli.good("list", "--all")) == []


@pytest.mark.section("6.2")
@pytest.mark.section("7.2")
def test_run_with_a_name_makes_it_once_and_stops_it(cli: CommandLine) -> None:
    """§6.2, §7.2: `run --name` takes the sandbox if there is one (after a 404 it makes it), and `--stop` keeps its files."""
    assert cli("run", "--silent", "--stop", "--name", "twice", "--", "sh", "-c", "echo 1 >> file; exit 3").code == 3
    assert cli("run", "--silent", "--stop", "--name", "twice", "--", "sh", "-c", "echo 2 >> file; cat file").out == "1\n2\n"
    assert [row["STATUS"] for row in rows(cli.good("list", "--all"))] == ["stopped"]


@pytest.mark.section("7.2")
def test_stop_tells_what_was_used_and_kept(cli: CommandLine) -> None:
    """§7.2: several at once; the answer has usage and the snapshot that a persistent one was kept in; again is no error."""
    cli.good("create", "--silent", "--name", "keeps")
    cli.good("create", "--silent", "--non-persistent", "--name", "forgets")
    done = cli("stop", "keeps", "forgets")
    assert done.code == 0, done.err
    assert done.err.count("Sandbox stopped.") == 2
    assert len(re.findall(r"snapshot: +snap_", done.err)) == 1
    assert "active cpu:" in done.err
    assert cli("stop", "keeps", "forgets").code == 0


@pytest.mark.section("6.5")
@pytest.mark.section("11.2")
def test_remove_takes_several_and_their_snapshots_when_asked(cli: CommandLine) -> None:
    """§6.5: snapshots outlive their sandbox, except with `--delete-orphan-snapshots`."""
    for name in ("one", "two"):
        cli.good("create", "--silent", "--name", name)
    cli.good("stop", "one", "two")
    cli.good("rm", "one")
    assert [row["STATUS"] for row in rows(cli.good("snapshots", "list"))][:2] == ["created", "created"]
    cli.good("rm", "--delete-orphan-snapshots", "two")
    assert cli("exec", "one", "true").code == 1
    assert rows(cli.good("list", "--all")) == []


@pytest.mark.section("6.6")
def test_fork_begins_with_the_sources_snapshot_and_settings(cli: CommandLine) -> None:
    """§6.6: files of the last snapshot, settings copied, what is given replaces them."""
    cli.good("create", "--silent", "--name", "source", "--tag", "a=1", "--env", "WHO=source", "--vcpus", "1")
    cli.good("exec", "source", "sh", "-c", "echo from the source > file")
    cli.good("snapshot", "--stop", "--silent", "source")
    assert cli("fork", "source", "--name", "copy").out == "copy"
    assert cli.good("exec", "copy", "sh", "-c", "cat file; echo $WHO") == "from the source\nsource\n"
    assert configuration(cli, "copy")["Tags"] == "a=1"
    cli.good(
        "fork",
        "source",
        "--silent",
        "--name",
        "changed",
        "--tag",
        "b=2",
        "--env",
        "WHO=changed",
        "--vcpus",
        "2",
        "--non-persistent",
    )
    assert cli.good("exec", "changed", "sh", "-c", "cat file; echo $WHO") == "from the source\nchanged\n"
    found = configuration(cli, "changed")
    assert (found["Tags"], found["vCPUs"], found["Persistent"]) == ("b=2", "2", "false")


@pytest.mark.section("7.1")
def test_sessions_are_listed(cli: CommandLine) -> None:
    """§7.1: running ones, or all; `limit` pages."""
    cli.good("create", "--silent", "--name", "many")
    for _ in range(2):
        cli.good("stop", "many")
        cli.good("exec", "many", "true")
    assert [row["STATUS"] for row in rows(cli.good("sessions", "ls", "many"))] == ["running"]
    every = rows(cli.good("sessions", "ls", "--all", "many"))
    assert [row["STATUS"] for row in every] == ["running", "stopped", "stopped"]
    assert all(row["ID"].startswith("sbx_") for row in every)
    oldest = rows(cli.good("sessions", "ls", "--all", "--sort-order", "asc", "many"))
    assert [row["ID"] for row in oldest] == [row["ID"] for row in reversed(every)]


@pytest.mark.section("2.2")
def test_telemetry_is_off(cli: CommandLine) -> None:
    """§2.2: `hutch env` keeps the command line from reporting what it does."""
    assert "Disabled" in cli("telemetry", "status").err


@pytest.mark.section("2.2")
def test_every_command_has_its_help(cli: CommandLine) -> None:
    """§2.2: these are the commands that this version has; a new one wants a test here."""
    found = re.findall(r"^    (\S+(?: \| \S+)?) {2,}", cli.good("--help"), re.MULTILINE)
    # fmt: off
    assert found == [
        "ls | list", "create", "sh", "fork", "config", "cp | copy", "exec", "ssh | connect", "stop", "rm | remove", "run",
        "snapshot", "snapshots", "sessions", "drives", "telemetry", "login", "logout",
    ]
    # fmt: on
