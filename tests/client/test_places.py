"""Which server is meant."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.client import find_server, server_file
from hutch.client.places import claims_of
from hutch.errors import BadRequestError, UnavailableError


def token(**claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"head.{body}.signature"


def written(data_dir: Path, content: object) -> Path:
    path = server_file(data_dir)
    path.parent.mkdir(parents=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return data_dir


def test_the_environment_names_a_server_and_the_token_says_who_we_are() -> None:
    secret = token(owner_id="team_1", project_id="prj_1")
    server = find_server(None, {"HUTCH_URL": "http://127.0.0.1:1/api/", "HUTCH_TOKEN": secret})
    assert (server.url, server.token, server.team_id, server.project_id) == ("http://127.0.0.1:1", secret, "team_1", "prj_1")


def test_a_data_directory_wins_over_the_environment(tmp_path: Path) -> None:
    written(tmp_path, {"url": "http://127.0.0.1:2", "token": "t", "team_id": "team_2", "project_id": None})
    server = find_server(tmp_path, {"HUTCH_URL": "http://127.0.0.1:1", "HUTCH_TOKEN": "x"})
    assert (server.url, server.team_id, server.project_id) == ("http://127.0.0.1:2", "team_2", "")


@pytest.mark.parametrize("environment", [{"HUTCH_URL": "http://127.0.0.1:1"}, {"HUTCH_TOKEN": "x"}])
def test_half_an_environment_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(BadRequestError, match="is set but"):
        find_server(None, environment)


@pytest.mark.parametrize("url", ["nonsense", "ftp://host", "http://", "http://host/?a=b", "http://[::1", "http://host/#x"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadRequestError, match="HUTCH_URL"):
        find_server(None, {"HUTCH_URL": url, "HUTCH_TOKEN": "x"})


def test_without_a_server_the_message_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="hutch serve"):
        find_server(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"url": 1}', '{"url": "http://x"}', "null", "[" * 1000])
def test_a_damaged_file_is_reported(tmp_path: Path, content: str) -> None:
    with pytest.raises(UnavailableError, match="is not what"):
        find_server(written(tmp_path, content))


@given(st.text(max_size=200))
def test_claims_of_anything_are_a_map_of_text(text: str) -> None:
    assert all(isinstance(value, str) for value in claims_of(text).values())
    assert all(isinstance(value, str) for value in claims_of(f"a.{text}.b").values())
