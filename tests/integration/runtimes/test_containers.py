"""What containers alone can do, and what can go wrong with them alone; on real podman."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.box.daemon import Box
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.errors import ConfigError, EngineUnsuitable
from bridge.protocol import InstanceState, ScaleConfig
from tests.boxes import boxed, first_failure, instances, serving
from tests.containers import containers, get, script, web
from tests.podman import IMAGE, OTHER_IMAGE, SERVE, Podman
from tests.registry import registry
from tests.support import Recorder, ask, box_config, eventually

S = InstanceState


def messages(recorder: Recorder) -> list[str]:
    return [event.message for _, event in recorder.events if event.message]


async def refused(gateway: Connection, config: ScaleConfig) -> str:
    answer = await ask(gateway, "web", 1, config=config)
    assert not answer.accepted
    assert answer.error
    return answer.error


# ── what a request and a configuration ask for ───────────────────────────────────────────


async def test_all_of_a_config_is_honoured(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    config = ScaleConfig(vcpus=1, memory_mib=64, env={"GREETING": "hello"}, port_map=["0:81"])
    async with boxed(server, tmp_path, web(env={"LEVEL": "a"}), **containers(podman)) as (
        gateway,
        _,
    ):
        await ask(gateway, "web", 1, config=config)
        [info] = await serving(gateway, "web", 1)
        limits = podman.inspect(info.id)["HostConfig"]
        assert (limits["NanoCpus"], limits["Memory"], limits["MemorySwap"]) == (
            1_000_000_000,
            64 << 20,
            64 << 20,
        )
        environ = (await get(info, "/cgi-bin/env")).splitlines()
        assert {"GREETING=hello", "LEVEL=a", "PORT=81", f"BOX_INSTANCE_ID={info.id}"} <= {*environ}
        assert info.endpoint is not None
        [bound] = podman.inspect(info.id)["NetworkSettings"]["Ports"]["81/tcp"]
        assert info.endpoint == f"{bound['HostIp']}:{bound['HostPort']}"


async def test_all_ports_are_published_and_the_first_is_where_it_serves(
    server: EmbeddedServer, tmp_path: Path, podman: Podman, unused_port: int
) -> None:
    table = web(port_map=["0:80", f"{unused_port}:81"])
    async with boxed(server, tmp_path, table, **containers(podman)) as (gateway, _):
        assert "Capped to 1" in ((await ask(gateway, "web", 2)).error or "")
        [info] = await serving(gateway, "web", 1)
        ports = podman.inspect(info.id)["NetworkSettings"]["Ports"]
        assert info.endpoint == f"127.0.0.1:{ports['80/tcp'][0]['HostPort']}"
        assert ports["81/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": str(unused_port)}]


async def test_a_container_carries_the_labels_of_its_box(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    async with boxed(server, tmp_path, web(), **containers(podman)) as (gateway, _):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        host_id = (tmp_path / "data-box-a" / "host-id").read_text().strip()
        assert podman.inspect(info.id)["Config"]["Labels"] == {
            "box-bridge.host-id": host_id,
            "box-bridge.service": "web",
            "box-bridge.slot": "0",
            "box-bridge.instance": info.id,
        }


async def test_secrets_appear_in_no_command_line_and_remain_in_no_file(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    table = web(env={"PASSWORD": "opensesame"})
    async with boxed(server, tmp_path, table, **containers(podman)) as (gateway, _):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        assert "PASSWORD=opensesame" in (await get(info, "/cgi-bin/env"))
        assert not [call for call in podman.calls() if "opensesame" in call]
        [(mode, file)] = [line.split() for line in podman.env_files()]
        assert mode == "600"
        assert not Path(file).exists()


async def test_entrypoint_and_command_are_those_of_the_configuration(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    table = web("-c", "exec httpd -f -p {port} -h /www", entrypoint=["sh", "-e"])
    async with boxed(server, tmp_path, table, **containers(podman)) as (gateway, _):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        found = podman.inspect(info.id)
        assert found["Config"]["Entrypoint"] == "sh"
        assert found["Args"] == ["-e", "-c", "exec httpd -f -p 80 -h /www"]


async def test_a_request_for_another_image_replaces_the_instances(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    settings = containers(podman)
    settings["more"] += '\nallow_images = ["localhost/box-bridge-test:*"]'
    async with boxed(server, tmp_path, web(), **settings) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        assert (await ask(gateway, "web", 1, config=ScaleConfig(image=OTHER_IMAGE))).accepted
        await eventually(lambda: recorder.states(info.id)[-1:] == ["Stopped"])
        [other] = await serving(gateway, "web", 1)
        assert podman.inspect(other.id)["ImageName"] == OTHER_IMAGE


async def test_a_container_gets_its_variables_byte_for_byte(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    env = {
        "SIGNS": "a=b=c # no comment; $HOME `id` \\n",
        "QUOTED": "\"a\" 'b'",
        "BLANKS": "  between  \t",
        "EMPTY": "",
        "ACCENTS": "é 終わり 😀",
        "LARGE": "x" * 30_000,
    }
    table = web(env={"OF_SERVICE": "'=\""}, request_env=list(env))
    async with boxed(server, tmp_path, table, **containers(podman)) as (gateway, _):
        assert (await ask(gateway, "web", 1, config=ScaleConfig(env=env))).accepted
        [info] = await serving(gateway, "web", 1)
        raw = podman("exec", info.id, "cat", "/proc/1/environ")
        got = dict(item.split("=", 1) for item in raw.split("\0") if item)
        assert {name: got.get(name) for name in env} == env
        assert got["OF_SERVICE"] == "'=\""


async def test_the_log_of_a_running_container_is_bounded(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    lines = f"seq 40000 | while read n; do echo $n-{'x' * 100}; done"
    table = web(*script(f"{lines}; exec sleep 1000"), log_size="512KiB", start_timeout=100.0)
    async with boxed(server, tmp_path, table, **containers(podman)) as (gateway, _):
        await ask(gateway, "web", 1)
        [info] = await eventually(lambda: instances(gateway, "web"))
        await eventually(lambda: info.id in podman.names(), what="the container is created")
        file = Path(podman.inspect(info.id)["HostConfig"]["LogConfig"]["Path"])
        await eventually(
            lambda: file.exists() and "40000-" in file.read_text(),
            within=60,
            what="it has written all",
        )
        assert file.stat().st_size < 1 << 20


async def test_what_a_container_cannot_honour_is_refused_in_the_reply(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    cases = {
        "env KEY has several lines": ScaleConfig(env={"KEY": "a\nb"}),
        "env 'a b' is not a name of letters": ScaleConfig(env={"a b": "c"}),
        'port_map ["0:80"] makes PORT 80': ScaleConfig(env={"PORT": "1"}),
        "is not a reference": ScaleConfig(image="--privileged"),
        "memory_mib must be at least 6": ScaleConfig(memory_mib=5),
        "the processors of the host": ScaleConfig(vcpus=255),
        "the same ports twice": ScaleConfig(port_map=["0:80", "0:80"]),
    }
    async with boxed(server, tmp_path, web(), **containers(podman)) as (gateway, recorder):
        for expected, config in cases.items():
            assert expected in await refused(gateway, config)
        assert not recorder.events


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"image": ""}, "`image` is missing"),
        ({"cwd": "/srv"}, "cwd is for the process runtime"),
        ({"fence": True}, "fence = true is for the process runtime"),
        ({"env": {"PORT": "1"}}, "env PORT is set by the Box"),
    ],
)
def test_settings_that_a_container_cannot_have_are_refused(
    tmp_path: Path, settings: dict[str, object], expected: str
) -> None:
    table = web(**settings)
    with pytest.raises(ConfigError, match=expected):
        Box(box_config(tmp_path, "nats://x", table, more='runtime = "oci"'))


# ── limits ───────────────────────────────────────────────────────────────────────────────


async def test_an_instance_over_its_memory_limit_is_killed_and_that_is_reported(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    hungry = script("sleep 1; x=$(dd if=/dev/zero bs=1M count=200 | tr '\\0' x); sleep 9")
    table = web(*hungry, memory_mib=32)
    async with boxed(server, tmp_path, table, **containers(podman)) as (gateway, recorder):
        await ask(gateway, "web", 1)
        event = await first_failure(recorder)
        assert event.message.startswith("killed by signal 9: out of memory: its limit is 32 MiB")


async def test_a_second_process_that_runs_out_of_memory_is_reported_at_the_end(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    hungry = script("sleep 1; dd if=/dev/zero of=/dev/null bs=200M count=1; exit 4")
    table = web(*hungry, memory_mib=32)
    async with boxed(server, tmp_path, table, **containers(podman)) as (gateway, recorder):
        await ask(gateway, "web", 1)
        event = await first_failure(recorder)
        assert event.message.startswith("exited with code 4: one of its processes was killed, out")


# ── images ───────────────────────────────────────────────────────────────────────────────


async def test_a_missing_image_is_pulled_once_and_that_is_reported(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    with registry(podman) as images:
        table = web(image=images.name)
        async with boxed(server, tmp_path, table, **containers(podman)) as (gateway, recorder):
            await ask(gateway, "web", 2)
            pulling = f"pulling image {images.name}"
            await eventually(lambda: pulling in messages(recorder))
            await eventually(lambda: any("waiting for image" in m for m in messages(recorder)))
            copying = f"{pulling}: Copying blob"
            await eventually(lambda: any(m.startswith(copying) for m in messages(recorder)))
            for info in await instances(gateway, "web"):
                assert info.state is S.CREATING
            images.open.set()
            await serving(gateway, "web", 2)
            notes = [e for _, e in recorder.events if "image" in e.message]
            assert {(e.from_state, e.to_state) for e in notes} == {(S.CREATING, S.CREATING)}
            assert any(m.startswith(f"pulled image {images.name} in") for m in messages(recorder))
            assert len([call for call in podman.calls() if call.startswith("pull")]) == 1


async def test_an_instance_that_is_no_longer_needed_does_not_wait_for_its_image(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    with registry(podman) as images:
        table = web(image=images.name)
        async with boxed(server, tmp_path, table, **containers(podman)) as (gateway, recorder):
            await ask(gateway, "web", 1)
            await eventually(lambda: any("/blobs/" in path for path in images.asked))
            [info] = await instances(gateway, "web")
            await ask(gateway, "web", 0)
            states = await recorder.reached(info.id, "Stopped")
            assert states[-2:] == ["Stopping", "Stopped"]
            assert "Booting" not in states
            assert not images.open.is_set()


async def test_a_failed_pull_is_reported_with_the_reason_of_the_engine(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    with registry(podman) as images:
        images.open.set()
        absent = images.name.replace("/web:1", "@sha256:" + 64 * "0")
        table = web(image=absent)
        async with boxed(server, tmp_path, table, **containers(podman)) as (gateway, recorder):
            await ask(gateway, "web", 1)
            event = await first_failure(recorder)
            assert event.from_state is S.CREATING
            assert event.message.startswith(f"image {absent} cannot be pulled: ")


# ── what others do to containers ─────────────────────────────────────────────────────────


async def test_a_removed_container_is_reported_and_replaced(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    async with boxed(server, tmp_path, web(), **containers(podman)) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        podman("rm", "-f", "-t", "0", info.id)
        await recorder.reached(info.id, "Failed")
        await eventually(lambda: len({e.instance_id for _, e in recorder.events}) == 2)
        [other] = await serving(gateway, "web", 1)
        assert other.id != info.id


async def test_only_strays_with_the_label_of_this_box_are_removed(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    async with boxed(server, tmp_path, web(), **containers(podman)) as (gateway, _):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        host_id = (tmp_path / "data-box-a" / "host-id").read_text().strip()
        stray = ("--name", "web-stray", "--label", f"box-bridge.host-id={host_id}")
        other = ("--name", "web-other", "--label", "box-bridge.host-id=another")
        for words in (stray, other):
            podman("run", "-d", *words, IMAGE, *SERVE[:3], "80")
        await eventually(lambda: podman.names() == {info.id, "web-other"})


# ── the engine ───────────────────────────────────────────────────────────────────────────


def failing(directory: Path, text: str) -> str:
    """An engine that is a script of our own."""
    file = directory / "engine"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            "echo podman version 2.1.1",
            "version 2.1.1; install 3.0 or later: apt-get install podman",
        ),
        ("echo lxc 4.0", "must be one of podman, docker, nerdctl, a3s-box"),
        ("echo no daemon >&2; exit 1", "exit code 1: no daemon"),
    ],
)
async def test_an_unsuitable_engine_is_reported_at_the_start(
    server: EmbeddedServer, tmp_path: Path, script: str, expected: str
) -> None:
    more = f'runtime = "oci"\nengine = "{failing(tmp_path, script)}"'
    box = Box(box_config(tmp_path, server.url, web(), more=more))
    with pytest.raises(EngineUnsuitable, match=expected):
        await box.run()


async def test_a_missing_engine_is_reported_with_what_to_install(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    box = Box(box_config(tmp_path, server.url, web(), more='runtime = "oci"\nengine = "nerdctl"'))
    with pytest.raises(EngineUnsuitable, match=r"install it .*nerdctl/releases"):
        await box.run()


async def test_sandbox_isolation_needs_an_engine_that_has_it(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    more = containers(podman)["more"] + '\nisolation = "sandbox"'
    box = Box(box_config(tmp_path, server.url, web(), more=more))
    with pytest.raises(EngineUnsuitable, match="podman has no isolation"):
        await box.run()
