"""A Box decides and plans only while its own lease is current."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge.box.daemon import Box
from bridge.bus.embedded_server import EmbeddedServer
from bridge.errors import NoReply
from tests.boxes import serving
from tests.fleet import service_record
from tests.support import ask, box_config, connect, eventually


@pytest.mark.slow
async def test_a_box_that_cannot_renew_its_lease_decides_nothing(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        connect(server.url) as gateway,
        Box.running(box_config(tmp_path, server.url)) as box,
    ):
        assert (await ask(gateway, "web", 2)).accepted
        await serving(gateway, "web", 2)
        assert box._components is not None
        fleet, withheld = box._components.fleet.view, 0

        async def withhold(key: str, value: Any, *, timeout: float = 5.0) -> int:
            nonlocal withheld
            withheld += 1
            raise NoReply(key, timeout)

        with monkeypatch.context() as fault:
            fault.setattr(fleet.hosts, "put", withhold)
            refusal = (
                "this Box's own lease is not current: "
                "no answer on box-a within 1 s: the outcome is unknown"
            )
            await eventually(lambda: box.blocker() == refusal, what="its lease expires")
            before = await service_record(gateway)
            for replicas in (2, 1, 3):  # the same, fewer, and more
                answer = await ask(gateway, "web", replicas, request_id=f"to-{replicas}")
                assert (answer.accepted, answer.error) == (
                    False,
                    f"not ready: {refusal}; ask again",
                )
            assert not box._components.fleet.readiness.may_plan()
            assert (await service_record(gateway)) == before, "nothing was decided"
            assert withheld
            assert fleet.live
            assert fleet._connection.connected

        await eventually(lambda: box.blocker() is None, what="it renews again")
        assert (await ask(gateway, "web", 3, request_id="to-3")).accepted
        await serving(gateway, "web", 3)
