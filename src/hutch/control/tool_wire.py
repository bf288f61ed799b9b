"""Requests and answers about workers' tools, as people switch them and agents call them. Messages of MCP itself are the SDK's."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypeAlias

from pydantic import Field
from typing_extensions import TypedDict

from hutch.control import answers
from hutch.control.requests import Body, Text


class ChangeTool(Body):
    """`confirm`: a person agrees to each call that comes over MCP."""

    enabled: bool | None = None
    confirm: bool | None = None


class CallTool(Body):
    """`arguments` as a model makes them: what may be null may be left out."""

    arguments: Annotated[dict[str, Any], Field(default_factory=dict)]


class Message(Body):
    """A request or notification of JSON-RPC 2.0; batches are none."""

    jsonrpc: Literal["2.0"]
    method: Annotated[Text, Field(min_length=1, max_length=256)]
    id: Annotated[Text, Field(max_length=256)] | int | None = None
    params: dict[str, Any] | None = None


# -- answers -----------------------------------------------------------------------------------------


class ToolShape(TypedDict):
    """A tool. `name` is what agents call it by; `readOnly` is the worker's own word."""

    key: str
    name: str
    title: str
    description: str
    readOnly: bool
    enabled: bool
    confirm: bool
    inputSchema: dict[str, Any]
    outputSchema: dict[str, Any] | None


class ToolList(TypedDict):
    """Of `ToolShape`s, or with `format` as a vendor's API takes them."""

    tools: list[dict[str, Any]]


class ToolResult(TypedDict):
    result: Any


class Reply(TypedDict):
    """A response of JSON-RPC 2.0."""

    jsonrpc: Literal["2.0"]
    id: str | int | None
    result: NotRequired[dict[str, Any]]
    error: NotRequired[dict[str, Any]]


Refusal: TypeAlias = Reply | answers.Error
"""MCP's own refusals are JSON-RPC's, all others those of every endpoint."""
