"""Brings a database to the newest schema, with Alembic's steps in `migrations/versions`.

There is no `env.py`: `Migrations` reads the steps from disk when it is made, and `upgrade` runs them on a connection that
the caller opened. The two are apart because the API process gives up the right to read the installation in between.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from hutch.storage.models import Base

DIRECTORY = Path(__file__).parent / "migrations"


@functools.cache
def migrations() -> Migrations:
    """Those of this installation, read once."""
    return Migrations()


class Migrations:
    """All steps, in memory."""

    def __init__(self) -> None:
        self._config = Config()
        self._config.set_main_option("script_location", str(DIRECTORY).replace("%", "%%"))
        self._config.set_main_option("path_separator", "os")
        self._scripts = ScriptDirectory.from_config(self._config)
        head = self._scripts.get_current_head()
        assert head is not None
        self.head: str = head

    def upgrade(self, connection: Connection) -> None:
        """Run what is missing, in the caller's transaction."""

        def steps(revision: Any, context: MigrationContext) -> Any:
            return self._scripts._upgrade_revs(self.head, revision)

        with EnvironmentContext(self._config, self._scripts, fn=steps, destination_rev=self.head) as environment:
            environment.configure(connection=connection, target_metadata=Base.metadata, transactional_ddl=False)
            environment.run_migrations()

    def current(self, connection: Connection) -> str | None:
        """The step that the database is at."""
        return MigrationContext.configure(connection).get_current_revision()
