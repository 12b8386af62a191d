"""Services that a request alone makes, from an image that hosts admit; on real podman."""

from __future__ import annotations

import contextlib
import shutil
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from nats.js.errors import NotFoundError

from bridge.box.daemon import Box
from bridge.bus.embedded_server import EmbeddedServer
from bridge.errors import BusError
from bridge.protocol import ScaleConfig
from tests.boxes import instances, serving
from tests.containers import QUICK, get, web
from tests.fleet import service_record
from tests.podman import IMAGE, Podman
from tests.support import PORTS, Recorder, ask, box_config, connect, eventually

SERVING = "localhost/box-bridge-serving:1"
_SCRIPT = "trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait"


@pytest.fixture
def image(podman: Podman) -> str:
    """An image that serves by itself, at the default port of containers."""
    podman("create", "--name", "to-be-image", IMAGE, "true")
    podman("commit", "-q", "--change", f'CMD ["sh", "-c", "{_SCRIPT}"]', "to-be-image", SERVING)
    podman("rm", "to-be-image")
    return SERVING


def oci(podman: Podman, *patterns: str) -> dict[str, Any]:
    """Settings for `box_config`: this podman, and what requests may name."""
    listed = ", ".join(f'"{pattern}"' for pattern in patterns)
    more = f'runtime = "oci"\nengine = "{podman.engine}"\nallow_images = [{listed}]'
    return {"more": more, "timing": QUICK}


async def test_an_image_that_one_host_admits_is_run_there_and_nowhere_else(
    server: EmbeddedServer, tmp_path: Path, podman: Podman, image: str
) -> None:
    plain = box_config(tmp_path, server.url, web(), **oci(podman), name="box-a")
    admits = oci(podman, "localhost/box-bridge-*:*")
    willing = box_config(tmp_path, server.url, "", **admits, name="box-b", max_instances=2)
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(connect(server.url))
        recorder = await Recorder.listening(gateway)
        for config in (plain, willing):
            await stack.enter_async_context(Box.running(config))
        refused = await ask(gateway, "shop", 1, config=ScaleConfig(image="redis:7"))
        assert "none admits image docker.io/library/redis:7" in (refused.error or "")
        answer = await ask(gateway, "shop", 3, config=ScaleConfig(image=image))
        assert answer.error == "Capped to 2 instances (max 2 total, 0 used by other services)"
        for info in await serving(gateway, "shop", 2):
            assert await get(info) == "ok\n"
            assert podman.inspect(info.id)["ImageName"] == image
            assert recorder.of(info.id)[0].from_state.value == "Creating"
        record = await service_record(gateway, "shop")
        assert (record.on_request, record.config.image) == (True, image)
        assert (await ask(gateway, "shop", 0)).accepted
        await serving(gateway, "shop", 0)
        assert (await ask(gateway, "shop", 1)).accepted  # its image is remembered
        await serving(gateway, "shop", 1)
        recorder.check_chains()


async def test_it_survives_a_restart_of_its_box_and_the_loss_of_the_store(
    server: EmbeddedServer, tmp_path: Path, podman: Podman, image: str
) -> None:
    def life(*patterns: str) -> AbstractAsyncContextManager[Box]:
        settings = oci(podman, *patterns)
        return Box.running(box_config(tmp_path, server.url, web(), **settings, on_exit="leave"))

    async with connect(server.url) as gateway:
        async with life(image):
            await ask(gateway, "shop", 1, config=ScaleConfig(image=image))
            [before] = await serving(gateway, "shop", 1)
        async with life(image):
            [after] = await serving(gateway, "shop", 1)
            assert after.id == before.id
            record = await service_record(gateway, "shop")
            await server.kill()
            await eventually(lambda: not gateway.connected)
            shutil.rmtree(server.directory / "jetstream")
            await server.start()

            async def restored() -> bool:
                with contextlib.suppress(BusError, NotFoundError):
                    there = [info.id for info in await instances(gateway, "shop")]
                    same = await service_record(gateway, "shop") == record
                    return same and there == [before.id]
                return False

            await eventually(restored)
        async with life("localhost/another:*"):
            await serving(gateway, "shop", 0)  # no longer admitted
            answer = await ask(gateway, "shop", 0)
            assert answer.accepted, answer.error
            assert await instances(gateway, "shop") == []
            assert before.id not in podman.names()


async def test_a_listed_service_takes_no_image_that_is_not_admitted(
    server: EmbeddedServer, tmp_path: Path, podman: Podman, image: str
) -> None:
    config = box_config(tmp_path, server.url, web(), **oci(podman), ports=PORTS)
    async with Box.running(config), connect(server.url) as gateway:
        refused = await ask(gateway, "web", 1, config=ScaleConfig(image=image))
        assert "is not admitted by its [box] allow_images" in (refused.error or "")
        assert (await ask(gateway, "web", 1, config=ScaleConfig(image=IMAGE))).accepted
        await serving(gateway, "web", 1)
