"""Manifests for tests: one with everything in it, as the SDK writes it, and ways to spoil it."""

from __future__ import annotations

import json
from typing import Any

from hutch.workers import manifest
from hutch.workers.manifest import Manifest

CLIENT_SECRET = "client-secret-that-nobody-sees"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "note": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
    "required": ["name", "note"],
    "additionalProperties": False,
}


def whole() -> dict[str, Any]:
    """A manifest of SDK 0.9.2 with one of everything."""
    return {
        "sdkVersion": "0.9.2",
        "credentials": [credential("LINEAR", "api.linear.app")],
        "databases": [
            database("customers", {"Name": {"type": "title"}, "ID": {"type": "text"}, "Country": select("US")}),
            database(
                "orders",
                {
                    "Order": {"type": "title"},
                    "ID": {"type": "text"},
                    "Customer": {
                        "type": "relation",
                        "relatedDatabaseKey": "customers",
                        "config": {"twoWay": True, "relatedPropertyName": "Orders"},
                    },
                },
            ),
        ],
        "xldbs": [
            {
                "key": "events",
                "config": {
                    "type": "managed",
                    "initialTitle": "Events",
                    "upsertKey": ["id"],
                    "schema": {"columns": [{"name": "id", "title": "Id", "type": "text"}]},
                },
            }
        ],
        "pacers": [{"key": "api", "config": {"allowedRequests": 10, "intervalMs": 1000}}],
        "capabilities": [
            {"_tag": "tool", "key": "greet", "config": {"title": "Greet", "description": "Greets", "schema": SCHEMA}},
            sync("customersSync", "customers", schedule={"type": "interval", "intervalMs": 300_000}),
            sync("ordersDelta", "orders", mode="incremental", schedule={"type": "manual"}),
            {"_tag": "sync", "key": "eventsSync", "config": {"target": {"type": "xldb", "key": "events"}}},
            {"_tag": "webhook", "key": "hook", "config": {"title": "Hook", "description": "", "hasVerify": True}},
            {"_tag": "automation", "key": "button", "config": {"title": "Button", "description": ""}},
            {"_tag": "ai_connector", "key": "chats", "config": {"aiConnectorId": "c1", "archetype": "chat"}},
            {"_tag": "oauth", "key": "github", "config": oauth()},
            {"_tag": "custom_block", "key": "block", "config": {"source": {"type": "static", "path": "b"}, "manifest": {}}},
            {"_tag": "hologram", "key": "future", "config": {"secretThing": "hidden"}},
        ],
    }


def oauth(**changes: Any) -> dict[str, Any]:
    return {
        "type": "user_managed",
        "name": "github-oauth",
        "authorizationEndpoint": "https://github.example/login/oauth/authorize",
        "tokenEndpoint": "https://github.example/login/oauth/access_token",
        "scope": "repo user",
        "clientId": "client-1",
        "clientSecret": CLIENT_SECRET,
    } | changes


def credential(key: str, *domains: str, header: str = "Authorization", template: str = "Bearer {{credential}}") -> dict[str, Any]:
    return {"key": key, "network": [{"domain": domain, "transform": [{"headers": {header: template}}]} for domain in domains]}


def database(key: str, properties: dict[str, Any], primary: str = "ID", **config: Any) -> dict[str, Any]:
    return {
        "key": key,
        "config": {
            "type": "managed",
            "initialTitle": key.title(),
            "primaryKeyProperty": primary,
            "schema": {"properties": properties},
        }
        | config,
    }


def select(*names: str) -> dict[str, Any]:
    return {"type": "select", "options": [{"name": name} for name in names]}


def sync(key: str, database: str, **config: Any) -> dict[str, Any]:
    return {"_tag": "sync", "key": key, "config": {"databaseKey": database, "primaryKeyProperty": "ID"} | config}


def parsed(value: Any) -> Manifest:
    return manifest.parse(json.dumps(value).encode())
