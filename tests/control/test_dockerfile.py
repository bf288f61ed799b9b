"""Dockerfiles: what is read, what is replaced, and what is refused with its line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.control import dockerfile
from hutch.control.dockerfile import Arg, Cmd, Copy, Entrypoint, Env, Ignored, Instruction, Label, Run, Stage, User, Workdir
from hutch.errors import BadRequestError

FROM = "FROM base\n"


def steps(text: str, given: dict[str, str] | None = None, **below: str) -> tuple[list[Instruction], Stage]:
    """Every step of a Dockerfile, and what holds at its end."""
    file = dockerfile.parse(text)
    file.check(given or {})
    stage = file.stage(given or {}, cwd="/home", below=below)
    return [stage.step(one) for one in file.instructions], stage


def test_instructions_are_read_with_their_lines() -> None:
    text = (
        "# a comment\n\nfrom base AS name\n"
        "RUN echo a && \\\n  # inside\n\n  echo b # kept\n"
        'run ["/bin/echo", "$HOME"]\r\n'
        "COPY a b c/\n"
        'ENV A=1 B="two words" C=three\\ words\nENV OLD form of  it\n'
        "ARG X\nARG Y=1 Z=2\nLABEL a.b=c\nWORKDIR sub/..//dir\nUSER joe:staff\n"
        'CMD ["a", "b"]\nENTRYPOINT exec app\nEXPOSE 80/tcp\nVOLUME /data\nMAINTAINER me\n'
    )
    found, stage = steps(text)
    assert found == [
        Run(4, ("/bin/sh", "-c", "echo a &&   echo b # kept"), "echo a &&   echo b # kept"),
        Run(8, ("/bin/echo", "$HOME"), '["/bin/echo", "$HOME"]'),
        Copy(9, ("a", "b"), "/home/c/"),
        Env(10, (("A", "1"), ("B", "two words"), ("C", "three words"))),
        Env(11, (("OLD", "form of  it"),)),
        Arg(12, "X", None),
        Arg(13, "Y", "1"),
        Arg(13, "Z", "2"),
        Label(14, (("a.b", "c"),)),
        Workdir(15, "/home/dir"),
        User(16, "joe:staff"),
        Cmd(17, ("a", "b")),
        Entrypoint(18, ("/bin/sh", "-c", "exec app")),
        *(Ignored(line, name, dockerfile._IGNORED[name]) for line, name in ((19, "EXPOSE"), (20, "VOLUME"), (21, "MAINTAINER"))),
    ]
    assert (stage.cwd, stage.user, stage.cmd) == ("/home/dir", "joe:staff", ("a", "b"))
    assert stage.environment == {"A": "1", "B": "two words", "C": "three words", "OLD": "form of  it", "Y": "1", "Z": "2"}


def test_variables_are_replaced_where_they_are_meant() -> None:
    text = (
        "ARG TAG=1\nARG IMAGE=app:$TAG\nFROM ${IMAGE}\n"
        "ARG TAG\nARG DIR=/opt/$TAG\nENV PATH=$DIR/bin:$PATH TAG=env\n"
        "WORKDIR ${DIR}/${NONE:-else}${TAG:+then}\nCOPY $TAG.txt '$TAG' \\$TAG \"a$TAG\" $DIR/\nUSER ${WHO:-joe}\nRUN echo $TAG\n"
        'LABEL v="$TAG" w=a$ x=${TAG}y z=$0\n'
    )
    file = dockerfile.parse(text)
    assert (file.base({}), file.base({"TAG": "2"}), file.base({"IMAGE": "x"})) == ("app:1", "app:2", "x")
    found, stage = steps(text, {"TAG": "2"}, PATH="/bin")
    assert stage.env == {"PATH": "/opt/2/bin:/bin", "TAG": "env"}
    assert stage.cwd == "/opt/2/elsethen"
    assert found[4] == Copy(8, ("env.txt", "$TAG", "$TAG", "aenv"), "/opt/2/")
    assert found[5] == User(9, "joe")
    assert found[6] == Run(10, ("/bin/sh", "-c", "echo $TAG"), "echo $TAG")
    assert stage.labels == {"v": "env", "w": "a$", "x": "envy", "z": "$0"}
    # As an ARG that is not set again after FROM, one from before it is not known.
    assert steps("ARG A=1\nFROM base\nENV B=x$A\n")[1].env == {"B": "x"}
    # Those of one ENV do not see each other.
    assert steps(f"{FROM}ENV A=1\nENV A=2 B=$A\n")[1].env == {"A": "2", "B": "1"}


def test_an_entry_point_takes_the_command_of_the_image_below() -> None:
    assert steps(f"{FROM}ENTRYPOINT a\n")[1].cmd == ()
    assert steps(f"{FROM}CMD b\nENTRYPOINT a\n")[1].cmd == ("/bin/sh", "-c", "b")
    assert steps(FROM)[1].cmd is None
    assert steps(f"{FROM}CMD []\n")[1].cmd == ()


@pytest.mark.parametrize(
    ("target", "expected"),
    [("x", "/home/x"), ("x/", "/home/x/"), (".", "/home/"), ("./", "/home/"), ("/", "/"), ("../..", "/"), ("/a/../b//c", "/b/c")],
)
def test_targets_start_at_the_working_directory(target: str, expected: str) -> None:
    [copy] = steps(f"{FROM}COPY a {target}\n")[0]
    assert isinstance(copy, Copy)
    assert copy.target == expected


def test_a_bracket_that_is_no_list_is_for_the_shell() -> None:
    for text in ("[ -e /x ] && true", "[1]", '["a"', '{"a": 1}', '["a", "b\\u0000"]'):
        [run] = steps(f"{FROM}RUN {text}\n")[0]
        assert run == Run(2, ("/bin/sh", "-c", text), text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no FROM"),
        ("# only this", "no FROM"),
        ("RUN true", "Line 1 of the Dockerfile: RUN comes before FROM"),
        ("FROM", "Line 1 of the Dockerfile: FROM should be"),
        ("FROM a b", "FROM should be"),
        ("FROM --platform=linux/arm64 a", "only linux/amd64"),
        ("FROM a\nFROM b", "Line 2 of the Dockerfile: a second FROM"),
        ("FROM a\n\nADD a b", "Line 3 of the Dockerfile: ADD is not supported"),
        ("FROM a\nONBUILD RUN true", "ONBUILD is not supported"),
        ('FROM a\nSHELL ["/bin/bash"]', "SHELL is not supported"),
        ("FROM a\nRUN", "RUN needs something"),
        ("FROM a\nRUN []", "empty list"),
        ("FROM a\nRUN --mount=type=secret,id=x cat /x", "RUN --mount is not supported"),
        ("FROM a\nRUN cat <<EOF > /x\nhello\nEOF", "`<<` documents"),
        ("FROM a\nCOPY --from=b /a /b", "COPY --from is not supported"),
        ("FROM a\nCOPY --chmod=755 a b", "COPY --chmod is not supported"),
        ("FROM a\nCOPY --", "COPY -- is not supported"),
        ("FROM a\nCOPY a", "at least one source"),
        ("FROM a\nCOPY $NONE b", "one of them is empty"),
        ("FROM a\nENV A", "ENV should be NAME=VALUE"),
        ("FROM a\nENV A=1 B", "'B' should be NAME=VALUE"),
        ("FROM a\nENV 1A=1", "no name of a variable"),
        ("FROM a\nENV A-B=1", "no name of a variable"),
        ("FROM a\nARG =1", "no name of a variable"),
        ('FROM a\nENV A="b', 'a quote " has no end'),
        ("FROM a\nENV A=${B", "is no variable"),
        ("FROM a\nENV A=${B%x}", "is no variable"),
        ("FROM a\nENV A=${B:-${C}}", "is no variable"),
        ("FROM a\nENV A=${}", "is no variable"),
        ("FROM a\nWORKDIR $NONE", "WORKDIR needs a path"),
        ("FROM a\nUSER $NONE", "USER needs a name"),
        ("FROM a\nUSER :joe", "USER needs a name"),
        ("FROM a\nCROSS BUILD", "CROSS is no instruction"),
        ("FROM a\n<html>", "is no instruction"),
        ("# escape=`\nFROM a", "only a backslash"),
        ("FROM a\nRUN a\0b", "NUL"),
        ("FROM a\n" + "RUN true\n" * 3000, "more than 2000 instructions"),
        ("FROM a\n" + "# x\n" * 400_000, "more than 1048576"),
        ("FROM a\nENV A=" + "x" * 1000 + "\n" + "ENV A=$A$A\n" * 50, "a value has more than"),
    ],
)
def test_what_is_not_supported_is_refused_by_line(text: str, said: str) -> None:
    with pytest.raises(BadRequestError, match="dockerfile_invalid") as refused:
        steps(text)
    assert said in refused.value.message


@pytest.mark.parametrize("image", ["scratch", "$NONE"])
def test_a_base_is_needed(image: str) -> None:
    with pytest.raises(BadRequestError, match="FROM needs an image"):
        dockerfile.parse(f"FROM {image}").base({})


def test_an_argument_that_nothing_takes_is_refused() -> None:
    with pytest.raises(BadRequestError, match="No ARG of the Dockerfile takes Y, Z"):
        steps(f"{FROM}ARG X\n", {"X": "1", "Y": "1", "Z": "2"})


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), max_size=40)
PIECES = st.lists(
    st.sampled_from(
        ["FROM ", "FROM a\n", "RUN ", "COPY ", "ENV ", "A=", "$", "${", "}", "'", '"', "\\", "\n", "#", "[", "]", " ", "x", ":-"]
    ),
    max_size=40,
).map("".join)


@given(st.one_of(PIECES, st.text(max_size=200)))
def test_anything_is_read_or_refused(text: str) -> None:
    for source in (text, FROM + text):
        try:
            steps(source)
        except BadRequestError as error:
            assert error.code == "dockerfile_invalid"


@given(st.lists(WORDS, min_size=1, max_size=5))
def test_a_json_list_arrives_as_it_is(argv: list[str]) -> None:
    [run] = dockerfile.parse(f"{FROM}RUN {json.dumps(argv)}\n").instructions
    assert isinstance(run, Run)
    assert list(run.argv) == argv


@given(WORDS)
def test_a_quoted_value_arrives_as_it_is(value: str) -> None:
    quoted = "".join(f"\\{character}" if character in '"\\$' else character for character in value)
    _, stage = steps(f'{FROM}ENV A="{quoted}"\n')
    assert stage.env == {"A": value}


@given(st.text(st.sampled_from("ab/.~ "), min_size=1, max_size=30).filter(str.strip))
def test_paths_stay_below_the_root(path: str) -> None:
    found = dockerfile.absolute("/home", path)
    assert found.startswith("/")
    assert not found.startswith("//")
    assert ".." not in found.split("/")
