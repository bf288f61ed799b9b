"""A Dockerfile as a list of steps: the part of the language that one stage over an image needs.

    parse(text)              instructions, each with its line; what is not supported is refused by name and line
    Dockerfile.base(args)    the image that it begins with
    Dockerfile.stage(…)      a `Stage`, which knows environment, arguments, directory and user from step to step:
                             `step(instruction)` is the instruction with its variables replaced

`$NAME`, `${NAME}`, `${NAME:-else}` and `${NAME:+then}` are replaced in FROM, ENV, ARG, LABEL, COPY, WORKDIR and USER. RUN, CMD
and ENTRYPOINT are left to the shell that runs them. Every mistake is a `BadRequestError` (`dockerfile_invalid`) that names
its line.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from hutch.errors import BadRequestError

MAX_BYTES = 1024 * 1024
MAX_INSTRUCTIONS = 2000
MAX_WORD = 64 * 1024
"""Characters of a value once its variables are replaced."""

SHELL = ("/bin/sh", "-c")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INSTRUCTION = re.compile(r"([A-Za-z]+)(?:[ \t]+(.*))?", re.DOTALL)
_FLAG = re.compile(r"--([a-z]+)(?:=(\S*))?(?:[ \t]+|$)")
_DIRECTIVE = re.compile(r"#[ \t]*escape[ \t]*=[ \t]*(\S+)[ \t]*", re.IGNORECASE)
_HEREDOC = re.compile(r"<<-?[\"']?[A-Za-z_]")
_REFUSED = {
    "ADD": "COPY takes files of the context; fetch others with RUN",
    "ONBUILD": "images here run nothing when others are built from them",
    "SHELL": "RUN uses /bin/sh; name another shell in RUN itself",
}
_IGNORED = {
    "EXPOSE": "ports are those of a create",
    "HEALTHCHECK": "sandboxes have none",
    "MAINTAINER": "use LABEL",
    "STOPSIGNAL": "sandboxes are stopped as a whole",
    "VOLUME": "everything below it is kept in the image",
}


@dataclass(frozen=True, slots=True)
class Run:
    line: int
    argv: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Copy:
    """`target` ends with a slash where it is said to be a directory. `owner` is `USER[:GROUP]`, or "" for root."""

    line: int
    sources: tuple[str, ...]
    target: str
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Env:
    line: int
    variables: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Arg:
    """`default` is None where there is none."""

    line: int
    name: str
    default: str | None


@dataclass(frozen=True, slots=True)
class Label:
    line: int
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Workdir:
    line: int
    path: str


@dataclass(frozen=True, slots=True)
class User:
    line: int
    user: str


@dataclass(frozen=True, slots=True)
class Cmd:
    line: int
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entrypoint:
    line: int
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ignored:
    line: int
    keyword: str
    why: str


Instruction: TypeAlias = Run | Copy | Env | Arg | Label | Workdir | User | Cmd | Entrypoint | Ignored


@dataclass(slots=True)
class Stage:
    """What holds at a step. `user` is "" for that of the image it began with; `cmd` and `entrypoint` are None where nothing was
    said."""

    cwd: str
    env: dict[str, str]
    """What was set by ENV, over what was there (`below`)."""
    below: Mapping[str, str]
    given: Mapping[str, str]
    """Arguments of the command line."""
    defaults: Mapping[str, str]
    """Arguments from before FROM."""
    args: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    user: str = ""
    cmd: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None

    @property
    def variables(self) -> dict[str, str]:
        """What is replaced."""
        return {**self.below, **self.args, **self.env}

    @property
    def environment(self) -> dict[str, str]:
        """What RUN finds set beside what was there."""
        return {**self.args, **self.env}

    def step(self, instruction: Instruction) -> Instruction:
        """The instruction with its variables replaced; what it says holds from now on. Raises `BadRequestError`."""
        line = instruction.line
        if isinstance(instruction, Env):
            # Those of one instruction do not see each other.
            before = self.variables
            instruction = Env(line, tuple((name, word(value, before, line)) for name, value in instruction.variables))
            self.env.update(instruction.variables)
        elif isinstance(instruction, Label):
            labels = tuple((self._word(name, line), self._word(value, line)) for name, value in instruction.labels)
            instruction = Label(line, labels)
            self.labels.update(labels)
        elif isinstance(instruction, Arg):
            value = instruction.default
            value = self.given.get(instruction.name, self._word(value, line) if value is not None else None)
            value = self.defaults.get(instruction.name) if value is None else value
            if value is not None:
                self.args[instruction.name] = value
        elif isinstance(instruction, Workdir):
            path = self._word(instruction.path, line)
            if not path or "\0" in path:
                raise invalid(line, "WORKDIR needs a path")
            instruction = Workdir(line, absolute(self.cwd, path))
            self.cwd = instruction.path
        elif isinstance(instruction, User):
            instruction = User(line, self._word(instruction.user, line))
            if not instruction.user.strip() or instruction.user.startswith(":"):
                raise invalid(line, "USER needs a name or a number")
            self.user = instruction.user
        elif isinstance(instruction, Copy):
            sources = tuple(self._word(source, line) for source in instruction.sources)
            target, owner = self._word(instruction.target, line), self._word(instruction.owner, line)
            if not target or not all(sources):
                raise invalid(line, "COPY needs sources and a target, and one of them is empty")
            slash = "/" if target.endswith(("/", "/.")) or target == "." else ""
            instruction = Copy(line, sources, absolute(self.cwd, target).rstrip("/") + slash or "/", owner)
        elif isinstance(instruction, Cmd):
            self.cmd = instruction.argv
        elif isinstance(instruction, Entrypoint):
            self.entrypoint = instruction.argv
            # As elsewhere: what the image below says is for its own entry point.
            self.cmd = self.cmd or ()
        return instruction

    def _word(self, text: str, line: int) -> str:
        return word(text, self.variables, line)


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """One stage: `image` as FROM has it, arguments from before it, and what comes after."""

    line: int
    image: str
    before: tuple[Arg, ...]
    instructions: tuple[Instruction, ...]

    def check(self, given: Mapping[str, str]) -> None:
        """Refuse arguments that no ARG takes. Raises `BadRequestError`."""
        taken = {one.name for one in (*self.before, *self.instructions) if isinstance(one, Arg)}
        if unknown := sorted(given.keys() - taken):
            raise BadRequestError("dockerfile_invalid", f"No ARG of the Dockerfile takes {', '.join(unknown)[:500]}.")

    def defaults(self, given: Mapping[str, str]) -> dict[str, str]:
        """The arguments from before FROM. Raises `BadRequestError`."""
        found: dict[str, str] = {}
        for arg in self.before:
            if arg.name in given:
                found[arg.name] = given[arg.name]
            elif arg.default is not None:
                found[arg.name] = word(arg.default, found, arg.line)
        return found

    def base(self, given: Mapping[str, str]) -> str:
        """The image to begin with. Raises `BadRequestError`."""
        image = word(self.image, self.defaults(given), self.line)
        if not image or image == "scratch":
            raise invalid(self.line, "FROM needs an image; there is no `scratch` here")
        return image

    def stage(self, given: Mapping[str, str], *, cwd: str, below: Mapping[str, str]) -> Stage:
        """Where the first step begins; `below` is the environment of the image. Raises `BadRequestError`."""
        return Stage(cwd=cwd, env={}, below=below, given=given, defaults=self.defaults(given))


def invalid(line: int, message: str) -> BadRequestError:
    """The error for a line."""
    return BadRequestError("dockerfile_invalid", f"Line {line} of the Dockerfile: {message}.")


def absolute(cwd: str, path: str) -> str:
    """A path from a directory, normalized; above `/` is `/`."""
    return "/" + posixpath.normpath(posixpath.join("/", cwd, path)).lstrip("/")


# -- reading ----------------------------------------------------------------------------------------


def parse(text: str) -> Dockerfile:
    """Raises `BadRequestError`."""
    if len(text) > MAX_BYTES or "\0" in text:
        raise BadRequestError("dockerfile_invalid", f"The Dockerfile has NUL characters or more than {MAX_BYTES} characters.")
    before: list[Arg] = []
    image: tuple[int, str] | None = None
    instructions: list[Instruction] = []
    for line, logical in _lines(text):
        match = _INSTRUCTION.fullmatch(logical)
        if match is None:
            raise invalid(line, f"{logical[:40]!r} is no instruction")
        keyword, rest = match[1].upper(), (match[2] or "").strip()
        if keyword == "FROM":
            if image is not None:
                raise invalid(line, "a second FROM; builds of several stages are not supported")
            image = (line, _from(line, rest))
        elif image is None:
            if keyword != "ARG":
                raise invalid(line, f"{keyword[:20]} comes before FROM, where only ARG may be")
            before += _args(line, rest)
        else:
            instructions += _instruction(line, keyword, rest)
        if len(instructions) + len(before) > MAX_INSTRUCTIONS:
            raise invalid(line, f"more than {MAX_INSTRUCTIONS} instructions")
    if image is None:
        raise BadRequestError("dockerfile_invalid", "The Dockerfile has no FROM.")
    return Dockerfile(image[0], image[1], tuple(before), tuple(instructions))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Logical lines with the number of their first one: comments left out, continued lines put together."""
    parts: list[str] = []
    first = 0
    directives = True
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = raw.removesuffix("\r")
        stripped = line.strip(" \t")
        if stripped.startswith("#"):
            escape = _DIRECTIVE.fullmatch(stripped) if directives else None
            if escape is not None and escape[1] != "\\":
                raise invalid(number, f"`escape` is {escape[1][:10]!r}; only a backslash is supported")
            continue
        directives = False
        if not stripped:
            # Also in the middle of a continued line.
            continue
        if not parts:
            first = number
        kept = line.rstrip(" \t")
        if kept.endswith("\\"):
            parts.append(kept[:-1])
            continue
        yield first, "".join([*parts, line]).strip(" \t")
        parts.clear()
    if last := "".join(parts).strip(" \t"):
        yield first, last


def _instruction(line: int, keyword: str, rest: str) -> list[Instruction]:
    if keyword in _REFUSED:
        raise invalid(line, f"{keyword} is not supported: {_REFUSED[keyword]}")
    if keyword in _IGNORED:
        return [Ignored(line, keyword, _IGNORED[keyword])]
    if not rest:
        raise invalid(line, f"{keyword[:20]} needs something")
    if keyword == "RUN":
        _flags(line, "RUN", rest, {})
        _no_heredoc(line, rest)
        return [Run(line, _argv(line, "RUN", rest), rest)]
    if keyword == "COPY":
        return [_copy(line, rest)]
    if keyword == "ENV":
        return [Env(line, tuple((_variable(line, "ENV", name), value) for name, value in _pairs(line, "ENV", rest)))]
    if keyword == "LABEL":
        return [Label(line, tuple(_pairs(line, "LABEL", rest)))]
    if keyword == "ARG":
        return [*_args(line, rest)]
    if keyword == "WORKDIR":
        return [Workdir(line, rest)]
    if keyword == "USER":
        return [User(line, rest)]
    if keyword == "CMD":
        return [Cmd(line, _argv(line, "CMD", rest, empty=True))]
    if keyword == "ENTRYPOINT":
        return [Entrypoint(line, _argv(line, "ENTRYPOINT", rest, empty=True))]
    raise invalid(line, f"{keyword[:40]} is no instruction that is known")


def _from(line: int, rest: str) -> str:
    flags, rest = _flags(line, "FROM", rest, {"platform": True})
    if flags.get("platform", "linux/amd64") != "linux/amd64":
        raise invalid(line, f"FROM --platform={flags['platform'][:40]}: only linux/amd64 is supported")
    words = split(rest, line)
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
        raise invalid(line, "FROM should be `FROM IMAGE` or `FROM IMAGE AS NAME`")
    return words[0]


def _copy(line: int, rest: str) -> Copy:
    flags, rest = _flags(line, "COPY", rest, {"chown": True, "link": True})
    _no_heredoc(line, rest)
    listed = _json(rest)
    words = listed if listed is not None else split(rest, line)
    if len(words) < 2:
        raise invalid(line, "COPY needs at least one source and a target")
    return Copy(line, tuple(words[:-1]), words[-1], flags.get("chown", ""))


def _args(line: int, rest: str) -> list[Arg]:
    words = split(rest, line)
    if not words:
        raise invalid(line, "ARG needs a name")
    found = []
    for one in words:
        name, separator, default = one.partition("=")
        found.append(Arg(line, _variable(line, "ARG", name), default if separator else None))
    return found


def _variable(line: int, keyword: str, name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise invalid(line, f"{keyword}: {name[:40]!r} is no name of a variable")
    return name


def _pairs(line: int, keyword: str, rest: str) -> list[tuple[str, str]]:
    """`NAME=VALUE …`, or the old form `NAME VALUE` with a value to the end of the line."""
    words = split(rest, line)
    if "=" not in words[0]:
        name, value = words[0], rest[len(words[0]) :].strip()
        if not value:
            raise invalid(line, f"{keyword} should be NAME=VALUE")
        return [(name, value)]
    found = []
    for one in words:
        name, separator, value = one.partition("=")
        if not name or not separator:
            raise invalid(line, f"{keyword}: {one[:40]!r} should be NAME=VALUE")
        found.append((name, value))
    return found


def _flags(line: int, keyword: str, rest: str, known: Mapping[str, bool]) -> tuple[dict[str, str], str]:
    """Flags of an instruction, and what follows them."""
    found: dict[str, str] = {}
    while rest.startswith("--"):
        match = _FLAG.match(rest)
        name = match[1] if match is not None else rest.split(maxsplit=1)[0].lstrip("-").partition("=")[0]
        if match is None or name not in known:
            raise invalid(line, f"{keyword} --{name[:40]} is not supported")
        found[name] = match[2] or ""
        rest = rest[match.end() :]
    return found, rest


def _no_heredoc(line: int, rest: str) -> None:
    if _HEREDOC.search(rest):
        raise invalid(line, "`<<` documents are not supported; COPY a file of the context")


def _argv(line: int, keyword: str, rest: str, *, empty: bool = False) -> tuple[str, ...]:
    """The JSON form as it is; the shell form as an argument of the shell."""
    listed = _json(rest)
    if listed is None:
        return (*SHELL, rest)
    if not listed and not empty:
        raise invalid(line, f"{keyword} has an empty list")
    return tuple(listed)


def _json(rest: str) -> list[str] | None:
    """A JSON list of strings, or None: `[ -e file ] && …` is for the shell."""
    if not rest.startswith("["):
        return None
    try:
        listed = json.loads(rest)
    except (ValueError, RecursionError):
        return None
    usable = isinstance(listed, list) and all(isinstance(one, str) and "\0" not in one for one in listed)
    return listed if usable else None


# -- words ------------------------------------------------------------------------------------------


def split(text: str, line: int) -> list[str]:
    """Words, with their quotes and backslashes still in them. Raises `BadRequestError` for a quote without its end."""
    words: list[str] = []
    current: list[str] = []
    quote = ""
    characters = iter(text)
    for character in characters:
        if character == "\\" and quote != "'":
            current += [character, next(characters, "")]
        elif quote:
            current.append(character)
            quote = "" if character == quote else quote
        elif character in "'\"":
            current.append(character)
            quote = character
        elif character in " \t":
            if current:
                words.append("".join(current))
                current = []
        else:
            current.append(character)
    if quote:
        raise invalid(line, f"a quote {quote} has no end")
    if current:
        words.append("".join(current))
    return words


def word(text: str, variables: Mapping[str, str], line: int) -> str:
    """A word without its quotes, its variables replaced; single quotes keep theirs. Raises `BadRequestError`."""
    found: list[str] = []
    size, place, quote = 0, 0, ""
    while place < len(text):
        character = text[place]
        piece = character
        place += 1
        if quote == "'":
            if character == "'":
                quote = piece = ""
        elif character == "\\" and place < len(text):
            following = text[place]
            place += 1
            # In double quotes a backslash is one unless it guards what would mean something there.
            piece = character + following if quote and following not in '"$\\' else following
        elif character == quote:
            quote = piece = ""
        elif character in "'\"" and not quote:
            quote, piece = character, ""
        elif character == "$":
            piece, place = _variable_at(text, place, variables, line)
        size += len(piece)
        if size > MAX_WORD:
            raise invalid(line, f"a value has more than {MAX_WORD} characters")
        found.append(piece)
    if quote:
        raise invalid(line, f"a quote {quote} has no end")
    return "".join(found)


def _variable_at(text: str, place: int, variables: Mapping[str, str], line: int) -> tuple[str, int]:
    """What stands for the variable whose name begins at `place`, after its `$`; and where it ends."""
    if not text.startswith("{", place):
        match = _NAME.match(text, place)
        return (variables.get(match[0], ""), match.end()) if match is not None else ("$", place)
    end = text.find("}", place)
    name, operator, operand = re.fullmatch(r"(\w*)(:[-+]|)(.*)", text[place + 1 : end], re.DOTALL).groups()  # type: ignore[union-attr]
    if end < 0 or _NAME.fullmatch(name) is None or (operand and not operator) or "$" in operand or "{" in operand:
        raise invalid(
            line, f"{text[place - 1 : place + 40]!r} is no variable; ${{NAME}}, ${{NAME:-else}} and ${{NAME:+then}} are"
        )
    value = variables.get(name, "")
    if operator == ":-":
        value = value or operand
    elif operator == ":+":
        value = operand if value else ""
    return value, end + 1
