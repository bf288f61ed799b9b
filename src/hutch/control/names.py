"""Names of sandboxes and drives, and slugs of teams and projects."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection

from hutch.errors import BadRequestError

NAME_PATTERN = re.compile(r"^[a-zA-Z0-9_-]+$")
MAX_NAME_LENGTH = 128
MAX_DRIVE_NAME_LENGTH = 64
RESERVED_NAMES = frozenset({"sessions", "snapshots", "drives"})
"""Their paths belong to other resources, so a sandbox of such a name could never be reached."""
SLUG_PATTERN = re.compile(r"^[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?$")

_ADJECTIVES = (
    "amber ancient autumn bold brave bright calm clever cosmic crimson curious daring eager early electric fancy fast "
    "fearless fleet floral frosty gentle gilded golden grand green happy hidden humble icy jolly keen kind late lively "
    "lucky lunar mellow merry mighty misty modest noble olive patient plain polished proud quick quiet rapid royal rustic "
    "shiny silent silver snowy solar steady sunny swift tidy tiny vivid warm wild wise young"
).split()
_NOUNS = (
    "acorn badger basin beacon birch bison breeze brook canyon cedar cliff cloud comet coral crane creek dawn delta dune "
    "eagle ember falcon fern field finch fjord forest fox garden glade grove harbor hare hawk heron hill island jaguar "
    "lagoon lake lark leaf lynx maple marsh meadow moon moss mountain oak ocean orchid otter owl panda pebble pine pond "
    "prairie quartz rain raven reef ridge river robin sage shore sky sparrow spring star stone stream thunder tiger trail "
    "valley wave willow wind wolf wren"
).split()


def check_region(field: str, region: str, known: Collection[str]) -> None:
    """Raises `BadRequestError` for a region that is not among `known`."""
    if region not in known:
        names = ", ".join(f'"{name}"' for name in sorted(known))
        raise BadRequestError("bad_request", f"Invalid request: `{field}` should be equal to one of the allowed values {names}.")


def check_name(name: str) -> str:
    """`name` if it can name a sandbox. Raises `BadRequestError`."""
    if not name:
        raise BadRequestError("bad_request", "Invalid request: `name` should NOT be shorter than 1 characters.")
    if len(name) > MAX_NAME_LENGTH:
        raise BadRequestError("bad_request", f"Invalid request: `name` should NOT be longer than {MAX_NAME_LENGTH} characters.")
    if not is_name(name):
        raise BadRequestError("bad_request", f'Invalid request: `name` should match pattern "{NAME_PATTERN.pattern}".')
    return name


def is_name(name: str) -> bool:
    """Whether `name` can name a sandbox; `$` of a pattern alone would let a final newline pass."""
    return 0 < len(name) <= MAX_NAME_LENGTH and NAME_PATTERN.fullmatch(name) is not None


def generate_name() -> str:
    """A readable name with 40 random bits, so that two generated names practically never meet."""
    return f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}-{secrets.token_hex(5)}"


def check_slug(kind: str, slug: str) -> str:
    """`slug` if it can name a team or project (`kind`). Raises `BadRequestError`."""
    if SLUG_PATTERN.fullmatch(slug) is None:
        raise BadRequestError(
            "bad_request",
            f"Invalid request: `{kind}` should be 1 to 48 lowercase letters, digits and inner hyphens, not {slug[:64]!r}.",
        )
    return slug
