"""Fenced instances end before others may take their slots over, whatever became of their Box."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.api import jetstream
from bridge.protocol import InstanceInfo, InstanceState
from tests.boxes import labelled, serving
from tests.faults.history import History
from tests.faults.killable import killable, scaled
from tests.faults.proxy import FaultyProxy
from tests.faults.scene import Scene
from tests.support import ask, eventually, service_table

S = InstanceState
FENCED = service_table("web", fence=True)
pytestmark = pytest.mark.slow


async def test_only_the_fenced_instances_of_a_frozen_box_end_and_before_its_lease(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with killable(server, tmp_path, FENCED, service_table("api")) as (gateway, box):
        await scaled(gateway, 2)
        assert (await ask(gateway, "api", 1)).accepted
        fenced = await serving(gateway, "web", 2)
        [other] = await serving(gateway, "api", 1)
        box.process.send_signal(signal.SIGSTOP)
        gone = [str(box.instances / info.id) for info in fenced]
        await eventually(
            lambda: not any(map(labelled, gone)), within=10, what="the fenced ones have ended"
        )
        state = (await jetstream(gateway).stream_info("KV_box_hosts")).state
        assert state.messages == 1, "the lease is not over yet"
        assert labelled(str(box.instances / other.id))
        box.process.send_signal(signal.SIGCONT)

        async def replaced() -> list[InstanceInfo] | None:
            there = await serving(gateway, "web", 2)
            return there if not {i.id for i in fenced} & {i.id for i in there} else None

        there = await eventually(replaced, within=10, what="both are replaced")
        history = await History.settled(gateway, [*there, other])
        history.check()
        for info in fenced:
            [end] = [e for _, e in history.events[info.id] if e.to_state is S.FAILED]
            assert end.message.startswith("fenced: ")
        assert history.states()[other.id][-1] in (S.READY, S.BUSY)


async def test_a_box_that_is_cut_off_restarts_no_fenced_instance(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with (
        FaultyProxy.to(server.url) as proxy,
        Scene.of(server, tmp_path, proxy.url, FENCED) as scene,
    ):
        [before] = await scene.scale(1, "before")
        directory = str(tmp_path / "data-box-a" / "instances" / before.id)
        proxy.cut()
        await scene.cut_off()
        await eventually(lambda: not labelled(directory), within=10, what="it has ended")
        proxy.mend()
        await scene.serves(1, "after")
        chains = await scene.chains()
        assert len(chains) == 2, "one before, one after, none in between"
