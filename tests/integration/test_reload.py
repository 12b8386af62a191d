"""Services are added, changed and removed without a restart, and nothing else is touched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bridge import ScaleClient
from bridge.box.daemon import Box
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.errors import ConfigError
from bridge.gateway.errors import ScaleRefused
from bridge.gateway.operator import Operator
from bridge.reply_codes import ReplyCode
from bridge.settings import Config
from tests.boxes import instances, serving
from tests.support import ask, box_config, connect, eventually, service_table


class Host:
    """A Box, its gateway, and the file that it reloads."""

    def __init__(self, server: EmbeddedServer, directory: Path, gateway: Connection) -> None:
        self._server = server
        self._directory = directory
        self.gateway = gateway
        self.box: Box | None = None
        self.tables = [service_table("web"), service_table("old")]
        self.more = ""

    def load(self) -> Config:
        return box_config(self._directory, self._server.url, *self.tables, more=self.more)

    async def reload(self, *tables: str) -> str:
        self.tables = list(tables)
        assert self.box is not None
        return str(await self.box.reload())

    async def ids(self, service: str) -> set[str]:
        return {info.id for info in await instances(self.gateway, service)}

    async def drained(self, service: str) -> None:
        async def none_left() -> bool:
            return not await self.ids(service)

        await eventually(none_left, what=f"{service} has drained")

    async def run(self, service: str, count: int) -> set[str]:
        await ask(self.gateway, service, count)
        return {info.id for info in await serving(self.gateway, service, count)}


@pytest.fixture
async def host(server: EmbeddedServer, tmp_path: Path) -> AsyncIterator[Host]:
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(connect(server.url))
        host = Host(server, tmp_path, gateway)
        host.box = await stack.enter_async_context(Box.running(host.load(), source=host.load))
        yield host


async def test_a_reload_adds_changes_and_removes_services_and_touches_no_other(
    host: Host,
) -> None:
    old, web = await host.run("old", 1), await host.run("web", 2)
    stays = service_table("old")
    changes = await host.reload(
        stays, service_table("web", env={"LEVEL": "1"}), service_table("new")
    )
    assert changes == "new added; web changed (env)"
    await eventually(lambda: _all_new(host, "web", web, 2), what="web is replaced")
    await host.run("new", 1)
    assert await host.ids("old") == old
    assert await host.reload(service_table("new")) == "old removed; web removed"
    for service in ("old", "web"):
        await host.drained(service)
        answer = await ask(host.gateway, service, 0)
        assert (answer.accepted, answer.target_replicas, answer.error) == (True, 0, None)
    async with ScaleClient.connect(host.gateway.settings.url) as client:
        with pytest.raises(ScaleRefused, match="no live Box offers 'web' any more") as refused:
            await client.scale("web", 1)
        assert refused.value.code == ReplyCode.CAPACITY_EXCEEDED
    assert len(await host.ids("new")) == 1


async def _all_new(host: Host, service: str, before: set[str], count: int) -> bool:
    now = await instances(host.gateway, service)
    return len(now) == count and before.isdisjoint(info.id for info in now)


async def test_a_wrong_file_changes_nothing_and_hosts_and_the_metric_report_it(
    host: Host,
) -> None:
    web = await host.run("web", 1)
    wrong = service_table("web", command=["/no/such/program"])
    with pytest.raises(ConfigError, match="/no/such/program of service web"):
        await host.reload(wrong)
    assert host.box is not None
    assert host.box.config.services["web"].command[0] != "/no/such/program"

    async def notices() -> list[str]:
        [listed] = await Operator(host.gateway).hosts()
        return listed.notices

    await eventually(lambda: _contains(notices, "the configuration was not reloaded"))
    assert _metric(host.box) == 1
    assert await host.reload(service_table("web"), service_table("old")) == "nothing changed"
    assert _metric(host.box) == 0
    assert await host.ids("web") == web


async def _contains(notices: object, text: str) -> bool:
    return any(text in notice for notice in await notices())  # type: ignore[operator]


def _metric(box: Box) -> float | None:
    return box.metrics.registry.get_sample_value("box_bridge_reload_failed")


async def test_settings_that_need_a_restart_are_named(host: Host) -> None:
    assert host.box is not None
    host.more = "allow_images = []\nlabels = { zone = 'b' }"
    assert await host.reload(*host.tables) == "restart this Box to apply [box] labels"
    assert host.box.config.box.labels == {}


async def test_a_stopped_rollout_goes_on_when_a_reload_cures_it(host: Host) -> None:
    web = await host.run("web", 1)
    broken = service_table("web", command=["/bin/false"])
    await host.reload(broken)
    operator = Operator(host.gateway)

    async def stopped() -> bool:
        [listed] = await operator.services("web")
        return bool(listed.stopped)

    await eventually(stopped, what="the rollout stops")
    assert await host.ids("web") >= web, "the old instance still serves"
    await host.reload(service_table("web", env={"LEVEL": "2"}))
    await eventually(lambda: _all_new(host, "web", web, 1), what="web is replaced")
