"""A Box with role = "runner": it runs instances, and decides nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace

from bridge.auth.directory import AuthDirectory
from bridge.auth.site import SERVER_CONFIG, plan_site
from bridge.box.daemon import Box
from bridge.box.state.records import ServiceRecord
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.api import jetstream
from bridge.config import load_nats
from bridge.errors import NoResponders
from bridge.gateway.client import ScaleClient
from bridge.protocol import InstancesResponse, InstanceState, ScaleConfig, decode
from bridge.settings import Config
from bridge.tasks import task_scope
from tests.support import FIRST_PORT, box_config, connect, eventually, service_table

RUNNER: Final = 'role = "runner"'
NOT_HERE: Final = """
[services.picky]
command = ["sh", "-c", '[ "$BOX_HOST" = box-b ] && exec sleep 1000; exit 1']
"""
FRAGILE: Final = """
[services.fragile]
command = ["sh", "-c", '[ -z "$BAD" ] && exec sleep 1000; exit 1']
request_env = ["BAD"]
"""


def configs(directory: Path, url: str, *services: str) -> tuple[Config, Config]:
    """A runner, box-a, and a Box that decides, box-b, which comes second by name."""
    ports = [f"{FIRST_PORT + first}-{FIRST_PORT + first + 99}" for first in (0, 100)]
    runner = box_config(
        directory, url, *services, name="box-a", ports=ports[0], more=RUNNER, on_exit="leave"
    )
    return runner, box_config(
        directory, url, *services, name="box-b", ports=ports[1], on_exit="leave"
    )


def with_user(config: Config, users: AuthDirectory, url: str) -> Config:
    flags = {"context": str(users.context_file(config.box.name)), "url": url}
    return replace(config, nats=load_nats(flags=flags, environ={}))


async def placed(client: ScaleClient, service: str = "web") -> list[str]:
    """The host of each instance that is Ready, in order."""
    seen: InstancesResponse = await client.observe(service)
    ready = [item.id for item in seen.instances if item.state is InstanceState.READY]
    return sorted(seen.hosts[item] for item in ready)


async def record_of(url: str, service: str) -> ServiceRecord:
    """The record of `service` as it is stored."""
    async with connect(url) as connection:
        stored = await jetstream(connection).get_last_msg(
            "KV_box_services", f"$KV.box_services.{service}"
        )
        return decode(ServiceRecord, stored.data or b"")


@pytest.mark.slow
async def test_a_runner_carries_out_what_a_box_decides_and_the_server_denies_it_nothing(
    tmp_path: Path,
) -> None:
    users = AuthDirectory(tmp_path / "auth")
    users.create(plan_site(prefix="box", hosts=["box-b"], runners=["box-a"]))
    async with EmbeddedServer(tmp_path / "nats", config=users.path / SERVER_CONFIG) as server:
        runner, decider = configs(tmp_path, server.url)
        flags = {"context": str(users.context_file("operator")), "url": server.url}
        async with (
            Box.running(with_user(decider, users, server.url)),
            Box.running(with_user(runner, users, server.url)),
            ScaleClient.connect(settings=load_nats(flags=flags, environ={})) as client,
        ):
            assert (await client.scale("web", 4, wait=True)).accepted
            assert await placed(client) == ["box-a", "box-a", "box-b", "box-b"]
            changed = ScaleConfig(env={"A": "1"})
            assert (await client.scale("web", 4, config=changed, wait=True)).accepted
            assert (await client.scale("web", 0, wait=True)).accepted
        lines = server.log_file.read_text().splitlines()
        assert [line for line in lines if "Violation" in line] == []


async def test_a_runner_answers_no_request(tmp_path: Path, server: EmbeddedServer) -> None:
    runner, _ = configs(tmp_path, server.url)
    async with Box.running(runner), connect(server.url) as connection:
        for subject in ("box.scale", "box.instances", "box.admin", "$SRV.PING"):
            with pytest.raises(NoResponders):
                await connection.request(subject, b"{}")


@pytest.mark.slow
async def test_a_box_moves_a_slot_away_from_a_runner_on_which_it_keeps_failing(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    runner, decider = configs(tmp_path, server.url, NOT_HERE)
    async with (
        Box.running(decider),
        Box.running(runner),
        ScaleClient.connect(server.url) as client,
    ):
        await client.scale("picky", 2)

        async def moved() -> bool:
            return sorted((await client.observe("picky")).hosts.values()) == ["box-b", "box-b"]

        await eventually(moved)
        assert {item.host for item in (await record_of(server.url, "picky")).avoid} == {"box-a"}
        await client.scale("picky", 0)


@pytest.mark.slow
async def test_a_runner_keeps_its_instances_until_a_box_restores_what_the_store_has_lost(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    runner, decider = configs(tmp_path, server.url, service_table("web"))
    async with ScaleClient.connect(server.url) as client, task_scope() as tasks:
        box = Box(runner)
        async with Box.running(decider):
            work = tasks.create_task(box.run())
            await box.wait_ready()
            assert (await client.scale("web", 2, wait=True)).accepted
            hosts = (await client.observe("web")).hosts
            [own] = [instance_id for instance_id, host in hosts.items() if host == "box-a"]
        async with connect(server.url) as connection:
            await jetstream(connection).delete_stream("KV_box_services")
        await eventually(lambda: "lost web" in str(box.blocker()))
        async with Box.running(replace(decider, box=replace(decider.box, on_exit="drain"))):

            async def restored() -> bool:
                return len(await placed(client)) == 2

            await eventually(restored)
            assert (await client.observe("web")).hosts[own] == "box-a"
            await eventually(lambda: box.blocker() is None)
            assert (await client.scale("web", 0, wait=True)).accepted
        box.stop()
        await work


@pytest.mark.slow
async def test_a_box_stops_a_rollout_whose_replacements_fail_on_runners_alone(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    runner, _ = configs(tmp_path, server.url, FRAGILE)
    _, decider = configs(tmp_path, server.url, NOT_HERE)
    async with (
        Box.running(decider),
        Box.running(runner),
        ScaleClient.connect(server.url) as client,
    ):
        await client.scale("fragile", 1)

        async def made() -> bool:  # else there is nothing to replace
            return bool((await client.observe("fragile")).instances)

        await eventually(made)
        await client.scale("fragile", 1, config=ScaleConfig(env={"BAD": "1"}))

        async def stopped() -> bool:
            rollout = (await record_of(server.url, "fragile")).rollout
            return rollout is not None and rollout.stopped != ""

        await eventually(stopped)
        assert set((await client.observe("fragile")).hosts.values()) == {"box-a"}
        await client.scale("fragile", 0)
