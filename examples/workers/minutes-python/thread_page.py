"""A thread as a page in Markdown. What people wrote is text: nothing of it becomes a heading, HTML or a picture of the page."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable
from typing import Any

DECIDED = "white_check_mark"
TITLE_LENGTH = 80
_CODE = re.compile(r"(```[\s\S]*?```|`[^`\n]+`)")
_MENTION = re.compile(r"<@([\w-]+)>")
_MARKUP = re.compile(r"<@([\w-]+)>|<(https?://[^|>\s]+)(?:\|([^>]*))?>")
_TODO = re.compile(r"^TODO:? +(.+)$", re.MULTILINE)

Name = Callable[[str], str]


def people_in(messages: list[dict[str, Any]]) -> list[str]:
    """Whoever is mentioned or has written; their names are asked for."""
    mentioned = {one for message in messages for one in _MENTION.findall(message["text"])}
    return sorted({message["author"] for message in messages} | mentioned)


def page_of(messages: list[dict[str, Any]], names: dict[str, str]) -> dict[str, str]:
    """Its `title` and `markdown`. Raises `ValueError`."""
    if not messages:
        raise ValueError("the thread has no messages")

    def name(one: str) -> str:
        return names.get(one, one)

    def said(text: str, message: dict[str, Any]) -> str:
        return f"{text} ({_escaped(name(message['author']))})"

    authors = dict.fromkeys(name(message["author"]) for message in messages)
    title = _plain(messages[0]["text"].split("\n")[0], name)[:TITLE_LENGTH]
    decided = [
        "- " + said(re.sub(r"\n+", " ", _formatted(message["text"], name)), message)
        for message in messages
        if DECIDED in message.get("reactions", ())
    ]
    todos = ["- [ ] " + said(_formatted(task, name), message) for message in messages for task in _TODO.findall(message["text"])]
    parts = [
        f"# {_escaped(title)}",
        f"*{_escaped(', '.join(authors))}; {_shown(messages[0]['at'])} to {_shown(messages[-1]['at'])}*",
        *_section("Decisions", decided),
        *_section("To do", todos),
        "## Thread",
        *(
            f"**{_escaped(name(message['author']))}**, {_shown(message['at'])}\n\n{_formatted(message['text'], name)}"
            for message in messages
        ),
    ]
    return {"title": title, "markdown": "\n\n".join(parts) + "\n"}


def _section(heading: str, lines: list[str]) -> Iterable[str]:
    return (f"## {heading}", "\n".join(lines)) if lines else ()


def _shown(at: str) -> str:
    moment = dt.datetime.fromisoformat(at)
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M")


def _plain(text: str, name: Name) -> str:
    return _MARKUP.sub(lambda match: f"@{name(match[1])}" if match[1] else match[3] or match[2], text)


def _formatted(text: str, name: Name) -> str:
    """Code stays as it is; mentions become names, and addresses links."""
    parts = _CODE.split(text)
    return "".join(part if at % 2 else _outside_code(part, name) for at, part in enumerate(parts)).strip()


def _outside_code(text: str, name: Name) -> str:
    done, begin = "", 0
    for match in _MARKUP.finditer(text):
        person, url, label = match.groups()
        done += _escaped(text[begin : match.start()])
        if person:
            done += f"**@{_escaped(name(person))}**"
        else:
            address = url.replace("<", "%3C").replace("\\", "%5C")
            done += f"[{_escaped(label or url)}](<{address}>)"
        begin = match.end()
    return done + _escaped(text[begin:])


def _escaped(text: str) -> str:
    marked = re.sub(r"[\\`*_{}\[\]<>#|~!]", r"\\\g<0>", text)
    return re.sub(r"^(\s*)([-+=]|\d+[.)])", r"\1\\\2", marked, flags=re.MULTILINE)
