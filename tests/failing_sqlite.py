"""SQLite that fails on demand, in place of a disk that is full or damaged."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

FULL = sqlite3.OperationalError("database or disk is full")


class FailingSqlite:
    """While `fault` is set, each statement that begins with `statement` raises it.

    `failures` counts these, `transactions` those that were begun.
    """

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.statement = "BEGIN IMMEDIATE"
        self.failures = 0
        self.transactions = 0

    def check(self, sql: str) -> None:
        if self.fault is not None and sql.startswith(self.statement):
            self.failures += 1
            raise self.fault
        self.transactions += sql == "BEGIN IMMEDIATE"

    @classmethod
    def install(cls, monkeypatch: pytest.MonkeyPatch) -> FailingSqlite:
        """Have every connection made from now on fail on demand."""
        sqlite, connect = cls(), sqlite3.connect

        class FailingConnection(sqlite3.Connection):
            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                sqlite.check(sql)
                return super().execute(sql, *parameters)

        def connect_failing(*arguments: Any, **settings: Any) -> sqlite3.Connection:
            if sqlite.fault is not None and sqlite.statement == "connect":
                sqlite.failures += 1
                raise sqlite.fault
            return connect(*arguments, factory=FailingConnection, **settings)

        monkeypatch.setattr(sqlite3, "connect", connect_failing)
        return sqlite
