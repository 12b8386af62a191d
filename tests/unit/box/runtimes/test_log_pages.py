"""Logs are read part by part: through rotations, from any line or time, and whatever they hold."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from bridge.box.runner.log_rotation import LogRotation
from bridge.box.runtimes.log_pages import read_files, read_rows, timed_rows
from bridge.box.runtimes.log_times import LogTimes
from bridge.cli.logs.source import Source
from bridge.log_protocol import LogChunk, LogRead, LogsRequest, LogsResponse

SECOND = 10**9
START = 1_700_000_000 * SECOND


class Log:
    """A log that an instance writes, and whose Box looks at it."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.file = directory / "stdout.log"
        self.now = START
        self.rotation = LogRotation(None, directory)  # type: ignore[arg-type]
        monkeypatch.setattr("time.time_ns", lambda: self.now)

    def write(self, text: bytes, *, limit: int = 1000, files: int = 3) -> None:
        """A second passes, the instance writes, and its Box looks."""
        self.now += SECOND
        with self.file.open("ab") as log:
            log.write(text)
        self.rotation._rotate_file(self.file, limit, files)

    def read(self, limit: int = 1000, **read: object) -> LogChunk:
        asked = LogRead(instance_id="web-a", stream="stdout", **read)  # type: ignore[arg-type]
        return read_files(self.directory, asked, limit, self.now, ended=False)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    return Log(tmp_path, monkeypatch)


async def no_host(request: LogsRequest) -> LogsResponse:
    raise AssertionError(request)


def taken(source: Source) -> list[bytes]:
    lines = [line.data for line in source.lines]
    source.lines.clear()
    return lines


def test_logs_are_followed_through_rotations(log: Log) -> None:
    source = Source("web-a", "stdout", no_host)
    seen = []
    for number in range(20):
        log.write(b"%d\n" % number * 3, limit=40)
        if number % 2:
            source.take(log.read(position=source.next_read().position))
            seen += taken(source)
    assert seen == [b"%d" % number for number in range(20) for _ in range(3)]


def test_a_new_process_of_the_box_keeps_the_positions(log: Log, tmp_path: Path) -> None:
    for number in range(5):
        log.write(b"line %d\n" % number, limit=28)
    place = log.read().next
    log.rotation = LogRotation(None, tmp_path)  # type: ignore[arg-type]
    log.write(b"after the restart\n", limit=28)
    assert log.read(position=place).data == b"after the restart\n"


def test_a_log_that_grew_too_fast_goes_on_after_the_gap(log: Log) -> None:
    log.write(b"one\n", limit=8)
    place = log.read().next
    log.write(b"lost\n" * 9 + b"kept\n" * 2, limit=10)
    log.write(b"last\n", limit=100)
    assert log.read(position=place).data == b"kept\nkept\nlast\n"
    assert log.read(position=0).data == b"kept\nkept\nlast\n"


def test_the_last_lines_are_found_in_older_files_too(log: Log) -> None:
    for number in range(9):
        log.write(b"line %d\n" % number, limit=28)
    for count in range(5):
        expected = b"".join(b"line %d\n" % number for number in range(9 - count, 9))
        assert log.read(tail=count).data == expected
    log.write(b"no end")
    assert log.read(tail=1).data == b"no end"
    assert log.read(tail=10**6).data.endswith(b"line 8\nno end")


def test_a_line_has_the_time_at_which_it_was_there_first(log: Log) -> None:
    log.write(b"one\ntwo\n")
    log.write(b"three\n")
    source = Source("web-a", "stdout", no_host)
    source.take(log.read())
    assert [(line.data, line.at - START) for line in source.lines] == [
        (b"one", SECOND),
        (b"two", SECOND),
        (b"three", 2 * SECOND),
    ]
    since = datetime.fromtimestamp(log.now / SECOND, UTC)
    assert log.read(since=since).data == b"three\n"


def test_a_part_ends_with_a_whole_line_unless_the_line_is_longer(log: Log) -> None:
    log.write(b"short\n" + b"x" * 50 + b"\n")
    first = log.read(20)
    assert (first.data, first.more) == (b"short\n", True)
    second = log.read(20, position=first.next)
    assert second.data == b"x" * 20


def test_binary_and_partial_lines_arrive_byte_for_byte(log: Log) -> None:
    source = Source("web-a", "stdout", no_host)
    log.write(b"\x00\xff\r\x1b[31m\nbegun")
    source.take(log.read())
    assert taken(source) == [b"\x00\xff\r\x1b[31m"]
    log.write(b" and ended\n")
    source.take(log.read(position=source.next_read().position))
    assert taken(source) == [b"begun and ended"]


def test_many_marks_of_one_log_are_thinned_and_keep_their_order(tmp_path: Path) -> None:
    times = LogTimes(tmp_path / "stdout.log")
    for number in range(1, 10_000):
        times.note(number, START + number)
    stored = LogTimes.read(tmp_path / "stdout.log")
    assert times.file.stat().st_size < 16 * 5000
    assert stored.between(0, 9999) == times.between(0, 9999)
    assert stored.position_at(START + 9999) == 9998


def test_a_link_in_the_place_of_a_log_is_not_followed(tmp_path: Path, log: Log) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    log.file.symlink_to(secret)
    assert log.read().data == b""


ROWS = (
    b"2026-11-29T01:00:00.000000001Z one\n"
    b"2026-11-29T01:00:00.5+00:00 two\n"
    b"2026-11-29T02:00:01+01:00 three\n"
)


def test_rows_of_an_engine_go_on_after_a_time_and_then_in_the_files(tmp_path: Path) -> None:
    read = LogRead(instance_id="web-a", stream="stdout")
    first = read_rows(ROWS, read, 5, 0, timed=True, ended=False)
    assert (first.data, first.more) == (b"one\n", True)
    rest = LogRead(instance_id="web-a", stream="stdout", position=first.next)
    second = read_rows(ROWS, rest, 4, 0, timed=True, ended=False)
    assert second.data == b"two\n"
    data, marks = timed_rows(ROWS, 0)
    (tmp_path / "stdout.log").write_bytes(data)
    LogTimes(tmp_path / "stdout.log").write(marks)
    rest = LogRead(instance_id="web-a", stream="stdout", position=second.next)
    assert read_files(tmp_path, rest, 1000, 0, ended=True).data == b"three\n"
    last = LogRead(instance_id="web-a", stream="stdout", tail=1)
    assert read_rows(ROWS, last, 1000, 0, timed=True, ended=False).data == b"three\n"


def test_an_engine_without_times_is_read_by_its_bytes() -> None:
    read = LogRead(instance_id="web-a", stream="stdout", tail=2)
    first = read_rows(b"one\ntwo\nthree\n", read, 4, 7, timed=False, ended=False)
    assert (first.data, first.more) == (b"two\n", True)
    rest = LogRead(instance_id="web-a", stream="stdout", position=first.next)
    second = read_rows(b"one\ntwo\nthree\n", rest, 99, 7, timed=False, ended=False)
    assert (second.data, second.more) == (b"three\n", False)
