"""`hutch image build` against the real server: steps in a real sandbox, and the image that comes of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Hutch
from tests.conftest import CHECKOUT, RunningServer
from tests.oci.images import busybox, file, image, layer
from tests.oci.registry import RunningRegistry

pytestmark = [pytest.mark.sandbox, pytest.mark.root]
# No kind of sandbox is asked for more than twice here: the server would begin to keep one ready, which looks like a leak.

DOCKERFILE = """\
# syntax=docker/dockerfile:1
ARG BASE=vercel/sandbox/universal
FROM $BASE
ARG VERSION=0
ARG UNSET
ENV APP_VERSION=$VERSION GREETING="hello world" PATH=/opt/app/bin:$PATH
LABEL org.example.version="$VERSION"
USER root
RUN useradd -u 1234 -m -G users joe && \\
    # a comment in the middle
    rm /etc/debian_version; rm -rf /opt/uv-nothing /usr/share/bash-completion && \\
    mkdir /usr/share/bash-completion && echo new > /usr/share/bash-completion/only
WORKDIR /srv
WORKDIR app
COPY --chown=joe hello.txt tools/ ./
COPY hello.txt /opt/app/renamed
COPY ["with space.txt", "/opt/app/"]
RUN ["/bin/sh", "-c", "id -u > /opt/app/who; echo $APP_VERSION $VERSION > /opt/app/version; pwd >> /opt/app/version"]
USER joe
RUN id -un > ~/me; id -G | tr ' ' '\\n' | grep -qx 100; echo "from $HOME"
EXPOSE 8080
CMD ["serve"]
ENTRYPOINT exec app
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "tools" / "bin").mkdir(parents=True)
    (tmp_path / "hello.txt").write_text("hello\n")
    (tmp_path / "with space.txt").write_text("space\n")
    (tmp_path / "tools" / "bin" / "run").write_text("#!/bin/sh\necho run\n")
    (tmp_path / "tools" / "bin" / "run").chmod(0o755)
    (tmp_path / "tools" / "link").symlink_to("bin/run")
    (tmp_path / "tools" / "left.log").write_text("not this")
    (tmp_path / ".dockerignore").write_text("# logs\n**/*.log\n")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    return tmp_path


def nothing_is_left(hutch: Hutch) -> bool:
    sandboxes = json.loads(hutch("ls", "--all", "--json").out)["sandboxes"]
    snapshots = json.loads(hutch("snapshot", "ls", "--json").out)["snapshots"]
    return not any(one["name"].startswith("build-") for one in sandboxes) and not any(
        (one.get("sourceSandboxName") or "").startswith("build-") for one in snapshots
    )


def test_an_image_is_built_and_runs_as_its_dockerfile_says(hutch: Hutch, context: Path) -> None:
    built = hutch("image", "build", str(context), "--name", "app", "--build-arg", "VERSION=7")
    assert built.code == 0, built.err
    assert built.out.startswith("app:latest sha256:")
    assert "from /home/joe" in built.err
    assert nothing_is_left(hutch)
    try:
        script = (
            "id -un; pwd; echo $APP_VERSION $GREETING $HOME; echo ${PATH%%:*};"
            " ls /etc/debian_version; ls /usr/share/bash-completion;"
            " cat hello.txt bin/run link /opt/app/renamed '/opt/app/with space.txt' /opt/app/who /opt/app/version ~/me;"
            " ls -l bin/run; stat -c %U . hello.txt bin/run /opt/app/renamed; ls; echo ${VERSION-unset}"
        )
        ran = hutch("run", "--image", "app", "--", "sh", "-c", script)
        assert ran.code == 0, ran.err
        tool = ["#!/bin/sh", "echo run"]
        assert ran.out.splitlines()[:5] == ["joe", "/srv/app", "7 hello world /home/joe", "/opt/app/bin", "only"]
        lines = ran.out.splitlines()[5:]
        assert lines[:11] == ["hello", *tool, *tool, "hello", "space", "0", "7 7", "/srv/app", "joe"]
        assert lines[11].startswith("-rwxr-xr-x")
        assert lines[12:] == ["root", "joe", "joe", "root", "bin", "hello.txt", "link", "unset"]
        assert "debian_version" in ran.err
        [shown] = [one for one in json.loads(hutch("image", "ls", "--json").out)["images"] if one["name"] == "app:latest"]
        assert (shown["user"], shown["cwd"], shown["cmd"]) == ("joe", "/srv/app", ["serve"])
        assert (shown["entrypoint"], shown["labels"]) == (["/bin/sh", "-c", "exec app"], {"org.example.version": "7"})
        # Another one over it.
        (context / "second").write_text("FROM app\nUSER root\nRUN echo more > more.txt && rm hello.txt\nUSER 1234\n")
        second = hutch("image", "build", str(context), "--name", "app:second", "--file", str(context / "second"), "--json")
        assert json.loads(second.out)["user"] == "joe", second.err
        assert hutch("image", "rm", "app").code == 0
        assert hutch("run", "--image", "app:second", "--", "sh", "-c", "id -un; ls").out.split() == [
            "joe",
            "bin",
            "link",
            "more.txt",
        ]
        assert hutch("image", "rm", "app:second").code == 0
    finally:
        hutch("image", "rm", "app")
        hutch("image", "rm", "app:second")


PROGRAMS = ("sh", "cat", "ls", "id", "pwd", "env", "test", "chown", "rm", "su", "true")


def test_an_image_that_has_little_is_built_on(hutch: Hutch, context: Path, registry: RunningRegistry) -> None:
    passwd = file("etc/passwd", "root:x:0:0::/root:/bin/sh\njoe:x:1001:1002::/home/joe:/bin/sh\n")
    base = registry.push("tests/little", "1", image(layer(*busybox(*PROGRAMS), passwd, file("gone", "x")), Env=["PATH=/bin"]))
    # No `setpriv` there, and nothing to ask for the environment but busybox's own.
    (context / "Dockerfile").write_text(
        f"FROM {base}\nRUN rm /gone\nWORKDIR /a/b\nCOPY --chown=joe tools ./tools/\nENV X=$PATH:/x\n"
        "USER joe\nRUN id -u > tools/who; echo $HOME $X >> tools/who\nUSER 77:88\n"
    )
    built = hutch("image", "build", str(context), "--name", "little")
    assert built.code == 0, built.err
    try:
        ran = hutch("run", "--image", "little", "--", "sh", "-c", "cat tools/who; id -u; id -g; pwd; tools/bin/run; ls /gone")
        assert ran.out.splitlines() == ["1001", "/home/joe /bin:/x", "77", "88", "/a/b", "run"], ran
        # What was pulled may go; its files stay.
        assert hutch("image", "rm", base).code == 0
        assert hutch("run", "--image", "little", "--", "true").code == 0
    finally:
        assert hutch("image", "rm", "little").code == 0


def test_a_step_that_fails_ends_the_build_and_leaves_nothing(hutch: Hutch, context: Path) -> None:
    (context / "Dockerfile").write_text(
        "FROM node22\nRUN true\nRUN echo to stdout; echo to stderr >&2; exit 7\nRUN touch /never\n"
    )
    failed = hutch("image", "build", str(context), "--name", "failed")
    assert (failed.code, failed.out) == (7, "")
    assert "to stdout\n" in failed.err
    assert "to stderr\n" in failed.err
    assert "Line 3 of the Dockerfile: RUN echo to stdout" in failed.err
    assert "build_step_failed" in failed.err
    assert nothing_is_left(hutch)
    assert "failed" not in hutch("image", "ls").out


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("FROM python3.13\nCOPY out /x", "Line 2 of the Dockerfile: COPY: "),
        ("FROM node24\nUSER nobody-here", "is not in its /etc/passwd"),
        ("FROM nothing-like-it", "(not_found)"),
        ('FROM python3.13\nRUN ["no-such-program"]', "Line 2 of the Dockerfile: RUN: "),
        ("FROM node24\nENV A=" + "x" * 20_000, "bytes of `env`"),
        ("FROM node24 AS one\nFROM one", "Line 2 of the Dockerfile: a second FROM"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(hutch: Hutch, context: Path, lines: str, said: str) -> None:
    (context / "out").symlink_to("/etc/passwd")
    (context / "Dockerfile").write_text(lines + "\n")
    refused = hutch("image", "build", str(context), "--name", "refused")
    assert (refused.code, refused.out) == (1, "")
    assert said in refused.err
    assert nothing_is_left(hutch)


def test_the_network_policy_holds_for_steps(hutch: Hutch, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM node24\nRUN curl -sS --max-time 5 http://example.com || exit 9\n")
    assert hutch("image", "build", str(context), "--name", "offline", "--network-policy", "deny-all", "--vcpus", "1").code == 9


def test_ctrl_c_ends_a_build_and_leaves_nothing(hutch: Hutch, server: RunningServer, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM node22\nRUN echo started; sleep 300\n")
    command = [sys.executable, "-m", "hutch", "image", "build", str(context), "--name", "interrupted"]
    with subprocess.Popen(command, cwd=CHECKOUT, env=server.environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line == "started\n":
                break
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        process.stderr.read()
    assert process.returncode == 130
    assert time.monotonic() - began < 30
    assert nothing_is_left(hutch)
