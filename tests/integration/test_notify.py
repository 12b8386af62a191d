"""The service manager hears how a Box is, and hears nothing from one whose loop stands still."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from bridge.box.daemon import Box
from bridge.bus.embedded_server import EmbeddedServer
from bridge.cli.sd_notify import Notifier
from bridge.settings import NotifyConfig
from bridge.tasks import task_scope
from tests.support import box_config, listening


@pytest.mark.slow
async def test_the_status_reports_why_a_box_is_not_ready_and_when_it_is_again(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    address = str(tmp_path / "notify")
    async with listening(address) as manager, task_scope() as tasks:
        box = Box(box_config(tmp_path, server.url))
        tasks.create_task(Notifier(NotifyConfig(address=address), box).run())
        await manager.notified("STATUS=this Box is starting")
        work = tasks.create_task(box.run())
        await manager.notified("READY=1")
        await manager.notified("STATUS=ready")
        await server.kill()
        await manager.notified("STATUS=this Box has been cut off from NATS for")
        await server.start()
        await manager.notified("STATUS=ready")
        box.stop()
        await manager.notified("STOPPING=1")
        await work
        # Only what changed was told again, and no watchdog was asked for.
        assert not {"READY=1", "STOPPING=1", "WATCHDOG=1"} & set(manager.lines)


async def test_a_blocked_event_loop_does_not_ping(server: EmbeddedServer, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    async with Box.running(box_config(tmp_path, server.url)) as box, task_scope() as tasks:
        notifier = Notifier(NotifyConfig(address=address, watchdog=0.02), box)
        async with listening(address) as manager:
            tasks.create_task(notifier.run())
            for _ in range(3):
                await manager.notified("WATCHDOG=1")
        Path(address).unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
            inbox.bind(address)
            inbox.settimeout(0.3)  # the loop stands still for as long: many pings would be due
            with pytest.raises(TimeoutError):
                inbox.recv(4096)
            inbox.setblocking(False)
            loop = asyncio.get_running_loop()
            assert b"WATCHDOG=1" in await asyncio.wait_for(loop.sock_recv(inbox, 4096), 10)


async def test_a_status_that_the_service_manager_missed_is_sent_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = str(tmp_path / "notify")
    notifier = Notifier(NotifyConfig(address=address), Box(box_config(tmp_path, "nats://none")))
    notifier.notify()
    notifier.notify()
    warnings = [line for line in caplog.messages if "cannot notify the service manager at" in line]
    assert len(warnings) == 1
    async with listening(address) as manager:
        notifier.notify()
        await manager.notified("STATUS=this Box is starting")
