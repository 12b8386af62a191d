"""The times of log lines: local with their offset as text, in UTC as JSON."""

from __future__ import annotations

import json
import logging
import re
import time

import pytest

from bridge.observe import configure_logging


@pytest.fixture
def half_past(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XST-5:30")
    time.tzset()


@pytest.mark.usefixtures("half_past")
def test_text_logs_have_local_times_with_their_offset_and_json_logs_have_utc(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        for style in ("text", "json"):
            configure_logging("warning", style)
            logging.getLogger("test").warning("hello")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        monkeypatch.undo()
        time.tzset()
    text, line = capsys.readouterr().err.splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+05:30 WARNING hello", text)
    assert json.loads(line)["time"].endswith("Z")
