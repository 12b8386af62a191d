"""One service whose events the bus refuses for now holds up no other service."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.box.daemon import Box
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.api import jetstream
from tests.boxes import serving
from tests.integration.test_alerts import alerts_of
from tests.integration.test_passing_refusals import ChangingServer, _with_permissions
from tests.support import Recorder, ask, box_config, connect, eventually, service_table

ALL = 'publish: [">"], subscribe: [">"]'
DENIED = 'publish: { allow: [">"], deny: ["box.events.api"] }, subscribe: [">"]'


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 6])  # events one by one, and in an atomic batch
async def test_a_service_whose_subject_is_denied_holds_up_no_other(
    tmp_path: Path, count: int
) -> None:
    services = service_table("web"), service_table("api")
    async with ChangingServer.running(tmp_path, _with_permissions(ALL)) as server:
        config = box_config(tmp_path, server.url("box:b"), *services, max_instances=20)
        async with connect(server.url("admin:a")) as gateway, Box.running(config) as box:
            value = box.metrics.registry.get_sample_value
            recorder = await Recorder.listening(gateway)
            server.reload(_with_permissions(DENIED))
            assert (await ask(gateway, "api", count)).accepted
            await serving(gateway, "api", count)
            await eventually(lambda: value("box_bridge_backlog_events") == 2 * count)
            assert (await ask(gateway, "web", count)).accepted
            for info in await serving(gateway, "web", count):
                await recorder.reached(info.id, "Ready")
            assert (await ask(gateway, "api", 0)).accepted
            await serving(gateway, "api", 0)
            assert not [event for _, event in recorder.events if event.service == "api"]
            alert = await eventually(lambda: alerts_of(gateway), what="an alert")
            assert "may not publish" in alert or "not permitted" in alert, alert
            server.reload(_with_permissions(ALL))
            await eventually(lambda: value("box_bridge_backlog_events") == 0)
            assert value("box_bridge_rejected_events") == 0
            await gateway.flush()
            by_instance: dict[str, list[int]] = {}
            for seq, event in recorder.events:
                if event.service == "api":
                    by_instance.setdefault(event.instance_id, []).append(seq)
            in_order = [1, 2, 3, 4, 5]  # Booting, Ready, Draining, Stopping, Stopped
            assert list(by_instance.values()) == [in_order] * count
            stream = await jetstream(gateway).stream_info("BOX_EVENTS", subjects_filter=">")
            assert (stream.state.subjects or {})["box.events.api"] == 5 * count


@pytest.mark.slow
async def test_a_service_whose_subject_is_full_holds_up_no_other(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    services = service_table("web"), service_table("api")
    async with (
        connect(server.url) as gateway,
        Box.running(box_config(tmp_path, server.url, *services)) as box,
    ):
        value = box.metrics.registry.get_sample_value
        recorder = await Recorder.listening(gateway)
        js = jetstream(gateway)
        stream = (await js.stream_info("BOX_EVENTS")).config
        limited = await js.update_stream(
            stream, max_msgs_per_subject=3, discard_new_per_subject=True
        )
        assert limited.config.max_msgs_per_subject == 3
        assert (await ask(gateway, "api", 2)).accepted
        await serving(gateway, "api", 2)
        assert (await ask(gateway, "web", 1)).accepted
        [info] = await serving(gateway, "web", 1)
        await recorder.reached(info.id, "Ready")
        await eventually(lambda: value("box_bridge_backlog_events") == 1)
        await js.update_stream(stream)
        await eventually(lambda: value("box_bridge_backlog_events") == 0)
