"""A server whose tables are in PostgreSQL, reached through its Unix socket from inside the API process's own root."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serve.conftest import DEADLINE_S, Start
from tests.storage.postgres import cluster


@pytest.mark.postgres
def test_a_server_keeps_its_tables_in_postgresql(start: Start) -> None:
    with cluster() as url:
        Path(url.partition("host=")[2]).chmod(0o711)
        server = start(HUTCH_DATABASE__URL=url)
        with server.http() as http:
            made = http.post("/api/hutch/v1/tokens", json={"team": "acme", "project": "web"})
            assert made.status_code == 201
            assert http.get("/v2/sandboxes").json()["sandboxes"] == []
        assert not (server.data_dir / "control" / "hutch.db").exists()
        server.process.terminate()
        assert server.process.wait(DEADLINE_S) == 0
        again = start(HUTCH_DATABASE__URL=url)
        with again.http() as http:
            teams = {token["team_id"] for token in http.get("/hutch/v1/tokens").json()["tokens"]}
        assert made.json()["team_id"] in teams
        again.process.terminate()
        assert again.process.wait(DEADLINE_S) == 0
