"""Files that only their owner may read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.box.host_directory import own_directory
from bridge.box.journal.store import JOURNAL, open_store
from bridge.private_files import make_private_directory


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct, autouse=True)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in directory.rglob("*")}


def test_what_a_box_makes_is_for_its_user_alone(tmp_path: Path) -> None:
    data = tmp_path / "new" / "data"
    with own_directory(data):
        store, _ = open_store(data / JOURNAL)
        store.apply([("facts", ("a",), ("a", "b"))])
        found = modes(data)
        store.close()
    assert data.stat().st_mode & 0o777 == 0o700
    assert found == {"lock": 0o600, "host-id": 0o600} | {
        JOURNAL + suffix: 0o600 for suffix in ("", "-wal", "-shm")
    }


def test_an_existing_directory_is_tightened_and_that_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, instance = tmp_path / "data", tmp_path / "data" / "instances" / "web-a"
    instance.mkdir(parents=True)
    files = [data / JOURNAL, data / "fence", instance / "stdout.log", instance / "exit"]
    own = instance / "made-by-the-instance"
    for file in (*files, own):
        file.touch()
        file.chmod(0o644)
    for directory in (data, data / "instances", instance):
        directory.chmod(0o755)
    for _ in range(2):
        with own_directory(data):
            pass
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert own.stat().st_mode & 0o777 == 0o644
    assert {path.stat().st_mode & 0o777 for path in (data, instance)} == {0o700}
    assert caplog.text.count("they no longer can") == 1


def test_a_directory_for_all_users_stays_for_all(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    make_private_directory(tmp_path)
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777
