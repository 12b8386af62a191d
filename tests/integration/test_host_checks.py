"""The findings of `doctor` on a host: its disk, its journal, its runtime and its ports."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bridge import descriptors
from bridge.box import diagnostics
from bridge.box.daemon import Box
from bridge.box.host_directory import own_directory
from bridge.box.runtimes.sockets import is_free
from bridge.bus.embedded_server import EmbeddedServer
from bridge.diagnostics import Status
from tests.integration.test_doctor import FAIL, OK, WARN
from tests.support import box_config, service_table


@contextmanager
def tiny_disk(directory: Path) -> Iterator[Path]:
    """A file system of 256 KiB, or a skipped test."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    directory.mkdir()
    if mount is None or umount is None or os.geteuid() != 0:
        pytest.skip("only root can make a small file system")
    command = [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(directory)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield directory
    finally:
        subprocess.run([umount, str(directory)], check=True)


def test_a_data_directory_that_is_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    for directory in (tmp_path / "data", tmp_path / "data" / "deeper"):
        finding = diagnostics.disk(directory)
        assert (finding.status, finding.message) == (
            FAIL,
            f"{tmp_path / 'data'} is not a directory",
        )


def test_a_missing_data_directory_is_checked_at_its_parent(tmp_path: Path) -> None:
    finding = diagnostics.disk(tmp_path / "a" / "b")
    assert finding.status is not FAIL
    assert finding.message.startswith(f"{tmp_path}, where {tmp_path / 'a' / 'b'} will be")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_fails(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "small") as directory:
        finding = diagnostics.disk(directory)
        assert (finding.status, "free at least 64 MiB" in finding.fix) == (FAIL, True)
        (directory / "filler").write_bytes(b"\0" * 240 * 1024)
        with pytest.raises(OSError, match="No space"):
            (directory / "more").write_bytes(b"\0" * 64 * 1024)
        finding = diagnostics.disk(directory)
        assert (finding.status, "No space left on device" in finding.message) == (FAIL, True)


def test_a_read_only_disk_fails(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "small") as directory:
        subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True)
        finding = diagnostics.disk(directory)
        assert (finding.status, "Read-only file system" in finding.message) == (FAIL, True)


async def test_a_damaged_journal_fails_and_is_left_unchanged(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    config = box_config(tmp_path, server.url)
    async with Box.running(config):
        pass
    assert "no Box uses it" in diagnostics.journal(config.data_dir).message
    path = config.data_dir / "journal.db"
    data = bytearray(path.read_bytes())
    data[100:4000] = b"\xff" * 3900
    path.write_bytes(data)
    finding = diagnostics.journal(config.data_dir)
    assert finding.status is FAIL
    assert "start the Box" in finding.fix
    assert path.read_bytes() == data


def test_the_journal_check_shows_whether_a_box_uses_it(tmp_path: Path) -> None:
    assert diagnostics.journal(tmp_path).message == "there is no journal yet; no Box uses it"
    with own_directory(tmp_path):
        assert diagnostics.journal(tmp_path).message == "there is no journal yet; a Box uses it"
    with own_directory(tmp_path):
        pass  # the check has not kept the lock


@pytest.mark.slow
@pytest.mark.parametrize(("more", "status"), [(1, FAIL), (0, OK)])
def test_too_few_descriptors_for_the_instances_fail_with_the_settings(
    tmp_path: Path, more: int, status: Status
) -> None:
    fitting = 8
    limit = descriptors.needed(fitting)
    config = box_config(tmp_path, "nats://127.0.0.1:4222", max_instances=fitting + more)
    # Another process has the limit: this one could not raise it again.
    code = (
        "import resource, sys; from pathlib import Path; from bridge.box import diagnostics; "
        "from bridge.config import load; n = int(sys.argv[2]); "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (min(n, 64), n)); "
        "found = diagnostics.files(load(Path(sys.argv[1]))); print(found.status, found.message); "
        "print(found.fix)"
    )
    arguments = [str(tmp_path / "box-a.toml"), str(limit)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    message, fix = done.stdout.splitlines()
    needed = descriptors.needed(config.box.max_instances)
    count = config.box.max_instances
    assert message == f"{status} {limit} files may be open, and {count} instances need {needed}"
    assert ("LimitNOFILE" in fix and "max_instances" in fix) is (status is FAIL)


# ── the runtime and the ports ────────────────────────────────────────────────────────────


def test_a_missing_program_fails(tmp_path: Path) -> None:
    config = box_config(
        tmp_path,
        "nats://127.0.0.1:4222",
        service_table("web"),
        service_table("api", command=["no-such-program"]),
    )
    finding = diagnostics.runtime(config)
    assert (finding.status, "no-such-program of service api" in finding.message) == (FAIL, True)
    assert "web" not in finding.message


def engine(directory: Path, script: str) -> Path:
    """A fake engine that reports the version of podman, and otherwise runs `script`."""
    path = directory / "fake-podman"
    path.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "podman version 4.3.1" && exit\n{script}\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("script", "status", "says"),
    [
        ("exit 0", OK, "podman 4.3.1"),
        ("echo no daemon >&2; exit 1", FAIL, "does not answer: no daemon"),
        ("exec sleep 60", FAIL, "timeout after 0.2 s"),
        (None, FAIL, "there is no such program"),
    ],
)
def test_an_engine_that_is_missing_or_does_not_answer_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str | None,
    status: Status,
    says: str,
) -> None:
    if script and "sleep" in script:
        monkeypatch.setattr(diagnostics, "_ENGINE_TIMEOUT", 0.2)
    path = engine(tmp_path, script) if script else tmp_path / "nowhere"
    config = box_config(
        tmp_path,
        "nats://127.0.0.1:4222",
        '[services.web]\nimage = "localhost/web"\n',
        more=f'runtime = "oci"\nengine = "{path}"',
    )
    finding = diagnostics.runtime(config)
    assert (finding.status, says in f"{finding.message}: {finding.fix}") == (status, True), finding


def unused_range(count: int) -> int:
    """The first of `count` consecutive free ports."""
    for first in range(11000 + 100 * (os.getpid() % 50), 20000, count):
        if all(map(is_free, range(first, first + count))):
            return first
    raise AssertionError("this machine has no free ports")


@contextmanager
def holding(ports: range) -> Iterator[list[int]]:
    """Listen on all of `ports`."""
    sockets = [socket.create_server(("127.0.0.1", port)) for port in ports]
    try:
        yield [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def test_taken_ports_are_listed_with_their_programs(tmp_path: Path) -> None:
    first = unused_range(12)
    config = box_config(
        tmp_path, "nats://127.0.0.1:4222", ports=f"{first}-{first + 11}", max_instances=10
    )
    assert diagnostics.ports(config).status is OK
    with holding(range(first, first + 2)):
        finding = diagnostics.ports(config)
        assert finding.status is WARN
        assert finding.message.startswith(f"10 of {first}-{first + 11} are free")
        assert f"pid {os.getpid()}" in finding.message
        with holding(range(first + 2, first + 3)):
            assert diagnostics.ports(config).status is FAIL


def test_a_taken_fixed_port_fails(tmp_path: Path) -> None:
    with holding(range(1)) as [port]:
        first = unused_range(12)
        config = box_config(
            tmp_path,
            "nats://127.0.0.1:4222",
            service_table("web", port_map=[f"{port}:80"]),
            ports=f"{first}-{first + 11}",
        )
        finding = diagnostics.ports(config)
    assert (finding.status, f"{port} is" in finding.message) == (FAIL, True)
    assert diagnostics.ports(config).status is OK
