"""A request's config: honoured, limited, rolled out one instance at a time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bridge.bus.embedded_server import EmbeddedServer
from bridge.gateway.operator import Operator
from bridge.protocol import (
    InstanceInfo,
    InstancesResponse,
    InstanceState,
    ScaleConfig,
    ScaleResponse,
    decode,
)
from bridge.reply_codes import ReplyCode
from bridge.subjects import REPLY_CODE
from tests.boxes import boxed, fetch, first_failure, instances, serving
from tests.paths import HTTP_SERVICE
from tests.support import ask, ask_for_reply, eventually, service_table

S = InstanceState


async def test_overrides_reach_the_instances_and_a_change_replaces_them_one_by_one(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    table = service_table("web", env={"LEVEL": "info", "KEPT": "yes"})
    async with boxed(server, tmp_path, table) as (gateway, recorder):
        await ask(gateway, "web", 2)
        before = await serving(gateway, "web", 2)
        assert (await fetch(before[0], "/env"))["LEVEL"] == "info"
        await ask(gateway, "web", 2, config=ScaleConfig(env={"LEVEL": "debug"}))

        async def all_new() -> list[InstanceInfo] | None:
            found = await serving(gateway, "web", 2)
            return None if {i.id for i in found} & {i.id for i in before} else found

        after = await eventually(all_new)
        for info in after:
            env = await fetch(info, "/env")
            assert (env["LEVEL"], env["KEPT"]) == ("debug", "yes")
            assert (env["BOX_INSTANCE_ID"], env["BOX_SERVICE"]) == (info.id, "web")
            assert info.endpoint == f"127.0.0.1:{env['PORT']}"
            assert Path(env["BOX_INSTANCE_DIR"]).parent.name == info.id
        for info in before:
            await recorder.reached(info.id, "Stopped")
        # At no moment did fewer than two serve: replay the events.
        serving_now: set[str] = set()
        fewest = 2
        for _, event in recorder.events:
            if event.to_state is S.READY:
                serving_now.add(event.instance_id)
            elif event.to_state is S.DRAINING:
                serving_now.discard(event.instance_id)
                fewest = min(fewest, len(serving_now))
        assert fewest == 2
        reasons = {e.message for _, e in recorder.events if e.to_state is S.DRAINING}
        assert "replaced: its config has changed" in reasons


async def test_max_surge_has_several_replaced_at_once_and_never_more(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    table = service_table("web", max_surge=3)
    async with boxed(server, tmp_path, table) as (gateway, _):
        await ask(gateway, "web", 3)
        before = {info.id for info in await serving(gateway, "web", 3)}
        await ask(gateway, "web", 3, config=ScaleConfig(env={"LEVEL": "debug"}))

        async def all_new() -> bool:
            return not before & {info.id for info in await serving(gateway, "web", 3)}

        await eventually(all_new)
        history = await Operator(gateway).history("web")
        extra = [len(entry.added) for entry in history.entries]
        assert extra == [3, 0, 3, *[0] * (len(extra) - 3)]  # asked for, then all three at once


async def test_three_failed_replacements_stop_the_rollout_and_ps_shows_it(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    table = service_table("web", command=["/bin/sh", "-c", _NEEDS_OK], env={"OK": "1"})
    async with boxed(server, tmp_path, table) as (gateway, recorder):
        await ask(gateway, "web", 2)
        before = await serving(gateway, "web", 2)
        await ask(gateway, "web", 2, config=ScaleConfig(env={"OK": "0"}))

        async def notice() -> str | None:
            message = await gateway.request("box.instances", b"{}")
            answer = decode(InstancesResponse, message.data)
            return answer.notices["web"] if "web" in answer.stopped else None

        said = await eventually(notice)
        assert said.startswith("rollout stopped after 3 failed replacements: exited with code 9")

        def failed() -> int:
            return sum(event.to_state is S.FAILED for _, event in recorder.events)

        await eventually(lambda: failed() >= 3)
        assert [i.id for i in await serving(gateway, "web", 2)] == [i.id for i in before]
        assert failed() == 3


_NEEDS_OK = f'[ "$OK" = 1 ] || exit 9; exec {sys.executable} -S -E {HTTP_SERVICE} "$PORT"'


async def test_vcpus_and_memory_are_really_limits(server: EmbeddedServer, tmp_path: Path) -> None:
    async with boxed(server, tmp_path) as (gateway, _):
        await ask(gateway, "web", 2, config=ScaleConfig(vcpus=1, memory_mib=300))
        found = await serving(gateway, "web", 2)
        cpus = [(await fetch(info, "/affinity"))["cpus"] for info in found]
        assert [len(pinned) for pinned in cpus] == [1, 1]
        if len(os.sched_getaffinity(0)) > 1:
            assert cpus[0] != cpus[1]  # spread over what there is
        pid = (await fetch(found[0]))["pid"]
        limits = Path(f"/proc/{pid}/limits").read_text()
        [line] = [line for line in limits.splitlines() if line.startswith("Max address space")]
        assert line.split()[3:5] == [str(300 << 20)] * 2


async def test_a_program_that_needs_more_memory_fails_with_its_last_words(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    table = service_table("web", "hog=600")
    async with boxed(server, tmp_path, table) as (gateway, recorder):
        await ask(gateway, "web", 1, config=ScaleConfig(memory_mib=300))
        event = await first_failure(recorder)
        assert event.message.startswith("exited with code 1: MemoryError (memory_mib = 300 limits")


async def test_a_fixed_port_is_the_instances_port_and_makes_one_a_host(
    server: EmbeddedServer, tmp_path: Path, unused_port: int
) -> None:
    async with boxed(server, tmp_path) as (gateway, _):
        config = ScaleConfig(port_map=[f"{unused_port}:80"])
        answer = await ask(gateway, "web", 2, config=config)
        assert answer.error == "Capped to 1 instances (max 1 total, 0 used by other services)"
        [info] = await serving(gateway, "web", 1)
        assert info.endpoint == f"127.0.0.1:{unused_port}"
        # The old one goes first when its config changes: the port is one.
        await ask(gateway, "web", 1, config=ScaleConfig(env={"A": "1"}))

        async def replaced() -> bool:
            found = await instances(gateway, "web")
            ready = [i for i in found if i.state is S.READY and i.id != info.id]
            return bool(ready) and len(found) == 1

        await eventually(replaced)


async def test_no_request_sets_a_variable_that_its_service_does_not_list(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, service_table("web", request_env=[])) as (gateway, _):
        reply = await ask_for_reply(gateway, "web", 1, config=ScaleConfig(env={"LEVEL": "debug"}))
        assert reply.headers[REPLY_CODE] == ReplyCode.UNSUPPORTED_CONFIG
        assert "list it in request_env" in (decode(ScaleResponse, reply.data).error or "")
        assert await instances(gateway, "web") == []
