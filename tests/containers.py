"""A Box whose instances are containers of real podman."""

from __future__ import annotations

import asyncio
import urllib.request
from typing import Any

from bridge.protocol import InstanceInfo
from tests.podman import IMAGE, SERVE, Podman
from tests.support import TIMING, service_table

QUICK = TIMING + "engine = 3\n"


def containers(podman: Podman, **changes: str) -> dict[str, Any]:
    """Settings for `box_config`: the oci runtime, with this podman."""
    return {"more": f'runtime = "oci"\nengine = "{podman.engine}"', "timing": QUICK, **changes}


def web(*command: str, **settings: object) -> str:
    """A service `web` of the test image; it serves HTTP without a `command`."""
    values: dict[str, object] = {
        "command": list(command or SERVE),
        "image": IMAGE,
        "port_map": ["0:80"],
        "stop_grace": 1.0,
        **settings,
    }
    return service_table("web", **values)


def script(text: str) -> tuple[str, str, str]:
    """A command that runs `text` in a shell."""
    return "sh", "-c", text


async def get(info: InstanceInfo, path: str = "/") -> str:
    """What the instance serves at `path`."""

    def read() -> str:
        with urllib.request.urlopen(f"http://{info.endpoint}{path}", timeout=10) as response:
            return str(response.read().decode())

    return await asyncio.to_thread(read)
