"""What a new sandbox begins with beside its image: a Git repository or a tar archive, fetched by programs of the sandbox itself.

A private repository's credential never enters the sandbox. It is taken out of the URL, and out of the fields beside it, and
becomes a rule of the network policy that holds while the source is fetched: the gateway adds it to requests to that host, over
verified TLS, and to no others, wherever a redirect leads.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit, urlunsplit

from hutch.control.requests import SandboxSource
from hutch.errors import BadRequestError

MAX_URL_BYTES = 4096
MAX_REVISION_LENGTH = 256
MAX_MESSAGE_CHARACTERS = 2000
MASK = "***"

_REVISION = re.compile(r"[A-Za-z0-9_@+./#=,-]+")
_DIRECTORY = re.compile(r"[A-Za-z0-9_.+@=,~-]+")

GIT = """
set -eu
url=$1 directory=$2 revision=$3
shift 3
git() {
  command git -c credential.helper= -c core.askPass= -c submodule.recurse=false \\
    -c protocol.allow=never -c protocol.https.allow=always -c protocol.http.allow=always "$@"
}
if [ -z "$revision" ]; then
  git clone -q "$@" -- "$url" "$directory"
  exit
fi
found=$(git ls-remote -- "$url" "refs/heads/$revision" "refs/tags/$revision")
if [ -n "$found" ]; then
  git -c advice.detachedHead=false clone -q "$@" --branch "$revision" -- "$url" "$directory"
  exit
fi
# A commit. Servers give one by its whole name; by less, or where they do not, all there is has to be searched.
mkdir -- "$directory"
cd -- "$directory"
git init -q
git remote add origin "$url"
if git fetch -q "$@" origin "$revision" 2> /dev/null; then
  git checkout -q --detach FETCH_HEAD
else
  git fetch -q --tags origin "+refs/heads/*:refs/remotes/origin/*"
  git checkout -q --detach "$revision^{commit}"
fi
"""
"""Arguments: URL, directory, revision or nothing, and what limits the depth."""

TARBALL = """
set -eu
archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
curl -fsSL --proto =http,https --max-redirs 10 --max-filesize "$2" -o "$archive" -- "$1"
tar --no-same-owner -xf "$archive"
"""
"""Arguments: URL, and the most bytes to download."""


@dataclass(frozen=True, slots=True)
class Source:
    """A source that can be meant. `url` has no credential in it; `secrets` are never to be shown."""

    type: str
    url: str
    host: str
    directory: str = ""
    revision: str = ""
    depth: int | None = None
    authorization: str = field(default="", repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def argv(self, max_bytes: int) -> list[str]:
        """The program that fetches it into the working directory."""
        if self.type == "tarball":
            return ["sh", "-c", TARBALL, "sh", self.url, str(max_bytes)]
        depth = ["--depth", str(self.depth)] if self.depth is not None else []
        return ["sh", "-c", GIT, "sh", self.url, self.directory, self.revision, *depth]

    def policy(self) -> str:
        """The network policy while it is fetched, in request form: everything, and the credential for its host only."""
        if not self.authorization:
            return '{"mode":"allow-all"}'
        rule = {"transform": [{"headers": {"authorization": self.authorization}}]}
        return json.dumps({"allow": {self.host: [rule], "*": []}})

    def said(self, output: str) -> str:
        """The end of what the program wrote, without secrets."""
        for secret in self.secrets:
            output = output.replace(secret, MASK)
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        return " ".join(lines[-5:])[-MAX_MESSAGE_CHARACTERS:]


def read(source: SandboxSource) -> Source:
    """A source of type `git` or `tarball`. Raises `BadRequestError` for what is not fetched."""
    url = source.url or ""
    if len(url.encode()) > MAX_URL_BYTES or not url.isprintable() or " " in url or "\\" in url:
        raise _wrong("url", f"should be a URL of at most {MAX_URL_BYTES} bytes without spaces and control characters")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise _wrong("url", "should be a URL") from error
    if parts.scheme not in ("https", "http") or not host:
        raise _wrong("url", "should begin with https:// or http:// and name a host")
    username = source.username if source.username is not None else unquote(parts.username or "")
    password = source.password if source.password is not None else unquote(parts.password or "")
    authorization = ""
    secrets: tuple[str, ...] = ()
    if username or password:
        if parts.scheme != "https":
            raise _wrong("url", "should begin with https://: a password is sent over verified TLS only")
        if ":" in username:
            raise _wrong("username", "should NOT contain `:`")
        encoded = base64.b64encode(f"{username}:{password}".encode()).decode()
        authorization = f"Basic {encoded}"
        secrets = tuple(secret for secret in (encoded, password) if secret)
    address = parts.netloc.rpartition("@")[2]
    clean = urlunsplit((parts.scheme, address, parts.path, parts.query, ""))
    if source.type == "tarball":
        return Source("tarball", clean, host, authorization=authorization, secrets=secrets)
    return Source(
        "git",
        clean,
        host,
        directory=_directory(parts.path),
        revision=_revision(source.revision or ""),
        depth=source.depth,
        authorization=authorization,
        secrets=secrets,
    )


def _directory(path: str) -> str:
    """What Git itself would name the clone."""
    name = unquote(path).rstrip("/").removesuffix("/.git").rpartition("/")[2].removesuffix(".git")
    if name in ("", ".", "..") or name.startswith("-") or _DIRECTORY.fullmatch(name) is None or len(name) > 255:
        raise _wrong("url", "should end with the name of a repository, of letters, digits and `_.+@=,~-`")
    return name


def _revision(revision: str) -> str:
    if revision and (
        revision.startswith(("-", "+", "/", ".")) or ".." in revision or "@{" in revision or _REVISION.fullmatch(revision) is None
    ):
        raise _wrong("revision", "should be a branch, a tag or a commit")
    if len(revision) > MAX_REVISION_LENGTH:
        raise _wrong("revision", f"should NOT be longer than {MAX_REVISION_LENGTH} characters")
    return revision


def _wrong(name: str, problem: str) -> BadRequestError:
    return BadRequestError("bad_request", f"Invalid request: `source.{name}` {problem}.")
