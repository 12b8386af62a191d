"""Connections in flight, read off the kernel's own tables."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from bridge.box.runtimes import sock_diag
from bridge.box.runtimes.process.process_groups import children, members
from bridge.box.runtimes.process.shim import command_pid
from bridge.box.runtimes.sockets import (
    ESTABLISHED,
    connections,
    count_by_port,
    is_free,
    parse,
    read_tables,
    serves,
)
from tests.paths import TINY_SERVICE

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:4E20 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 0100007F:4E20 0100007F:A001 01 00000000:00000000 00:00000000 00000000     0        0 2
   2: 0100007F:4E20 0100007F:A002 01 00000000:00000000 00:00000000 00000000     0        0 3
   3: 0100007F:A001 0100007F:4E20 01 00000000:00000000 00:00000000 00000000     0        0 4
   4: 0100007F:4E20 0100007F:A003 06 00000000:00000000 00:00000000 00000000     0        0 5
   5: 00000000000000000000000001000000:4E20 00000000000000000000000001000000:A004 01 0:0 0:0 0 0 0
   6: 0100007F
"""


def test_connections_count_at_the_serving_end_except_those_of_probes() -> None:
    pairs = list(parse(TABLE.splitlines(), ESTABLISHED))
    assert count_by_port(pairs)[0x4E20] == 3
    assert count_by_port(pairs, without={0xA002})[0x4E20] == 2
    assert count_by_port(pairs)[1] == 0


def test_a_real_connection_is_seen_and_a_listening_port_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        assert count_by_port(connections())[port] == 0
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert count_by_port(connections())[port] == 1
            assert count_by_port(connections(), without={client.getsockname()[1]})[port] == 0
    assert is_free(port)


def test_an_ipv6_listener_is_seen_too() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        with socket.create_connection(("::1", port)):
            assert count_by_port(connections())[port] == 1


def test_sock_diag_returns_what_the_tables_of_the_kernel_hold() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both,
    ):
        port, other = server.getsockname()[1], both.getsockname()[1]
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            socket.create_connection(("127.0.0.1", other)),
            socket.create_connection(("::1", other)),
        ):
            direct = count_by_port(sock_diag.established())
            read = count_by_port(parse(read_tables("self"), ESTABLISHED))
            assert [direct[port], direct[other]] == [read[port], read[other]] == [1, 2]
            assert direct[plain.getsockname()[1]] == 1
        # The side that closed first is in TIME_WAIT now; only the tables list it.
        assert count_by_port(sock_diag.established())[port] == 0


def test_the_tables_are_read_where_sock_diag_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise PermissionError("as in a sandbox")

    monkeypatch.setattr(sock_diag, "established", refuse)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            assert count_by_port(connections())[port] == 1


def test_the_listener_is_found_without_a_scan_of_all_processes(
    monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    """As for an instance: its shim does not listen, a child of the shim's does."""
    run = f"{sys.executable} -I -S {TINY_SERVICE} {unused_port}; :"
    leader = subprocess.Popen(["/bin/sh", "-c", run], start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while is_free(unused_port) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert command_pid(leader.pid) is not None
        monkeypatch.setattr(psutil, "pids", lambda: pytest.fail("looked at all processes"))
        monkeypatch.setattr(psutil, "process_iter", lambda: pytest.fail("looked at all of them"))
        assert serves(members(leader.pid), unused_port)
        assert command_pid(leader.pid) is not None
        assert not serves([os.getpid(), leader.pid], unused_port)  # neither does itself
    finally:
        os.killpg(leader.pid, signal.SIGKILL)
        leader.wait()
    assert children(leader.pid) == []


def test_the_listener_is_found_where_sock_diag_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise PermissionError("as in a sandbox")

    monkeypatch.setattr(sock_diag, "listening", refuse)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert serves([os.getpid()], port)
    assert not serves([os.getpid()], port)
