"""`doctor` on a cluster: how many copies there are, and which of them are not well."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from bridge.bus.diagnostics import checks
from bridge.bus.jetstream import topology
from bridge.diagnostics import Finding, Status
from bridge.errors import BusError
from tests.faults.cluster import Cluster
from tests.support import connect, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


async def test_copies_are_counted_and_a_server_that_is_away_is_named(tmp_path: Path) -> None:
    async with (
        Cluster.running(tmp_path) as cluster,
        connect(cluster.servers["one"].url) as alone,
        connect(cluster.servers["one"].url, replicas=3) as connection,
        connect(cluster.servers["one"].url, replicas=5) as greedy,
    ):
        assert (await checks.streams(greedy, None)).status is Status.WARN
        finding = await checks.streams(alone, None)
        assert finding.status is Status.WARN
        assert "one copy of each stream in a cluster of 3 servers" in finding.message
        await topology.ensure(connection, replicas=3)

        async def found(part: str) -> Finding | None:
            with contextlib.suppress(BusError):  # while another leader is elected
                finding = await checks.streams(connection, None)
                return finding if part in finding.message else None
            return None

        await eventually(lambda: found("3 copies of each"))
        await cluster.servers["two"].kill()
        finding = await eventually(lambda: found("server two is offline, or behind"))
        assert finding.status is Status.WARN
        assert "server one" not in finding.message
