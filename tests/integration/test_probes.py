"""Results of probes, and the moments at which many instances are probed."""

from __future__ import annotations

import errno
import os
import random
import socket

import pytest

from bridge.box.runner.probes import BEATS, NOT_SENT, Prober, until_next
from bridge.settings import Probe
from tests.failing_call import FailingCall

TCP = Probe(tcp=True, timeout=5)


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1"])
async def test_a_tcp_probe_passes_where_a_process_listens(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server(("", 0), family=family) as server:
        port = server.getsockname()[1]
        async with Prober.open(address) as prober:
            assert await prober.probe(TCP, port) is None
            assert len(prober.ports) == 1  # kept until the next load sample
            prober.forget_closed()
            assert not prober.ports


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
async def test_a_failed_tcp_probe_reports_the_reason(address: str, unused_port: int) -> None:
    async with Prober.open(address) as prober:
        assert (
            await prober.probe(TCP, unused_port) == f"connection refused by {address}:{unused_port}"
        )


async def test_a_tcp_probe_ends_at_its_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:  # it never accepts
        port = deaf.getsockname()[1]
        async with Prober.open("127.0.0.1") as prober:
            waiting: list[socket.socket] = []
            answer = None
            while answer is None and len(waiting) < 10:
                client = socket.socket()
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", port))
                waiting.append(client)
                answer = await prober.probe(Probe(tcp=True, timeout=0.1), port)
            for client in waiting:
                client.close()
    assert answer == "no answer within 0.1 s"


def test_probes_of_many_instances_share_their_wake_ups() -> None:
    chance = random.Random(1)
    starts = [chance.uniform(1000, 1005) for _ in range(500)]
    moments = [start + until_next(start, 5.0) for start in starts]
    assert len({round(moment, 6) for moment in moments}) <= BEATS + 1
    assert all(5.0 <= moment - start <= 5.25 for start, moment in zip(starts, moments, strict=True))
    again = [moment + until_next(moment, 5.0) for moment in moments]
    assert len({round(moment, 6) for moment in again}) <= BEATS + 1


async def test_a_lack_of_descriptors_is_no_fault_of_the_instance(
    monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    failing = FailingCall(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    async with Prober.open("127.0.0.1") as prober:
        monkeypatch.setattr(socket, "socket", failing)
        assert await prober.probe(TCP, unused_port) == NOT_SENT
        http = Probe(http="/", timeout=5)
        assert await prober.probe(http, unused_port) == NOT_SENT
