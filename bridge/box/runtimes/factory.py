"""Which runtime a configuration asks for, ready to make instances."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket

from bridge.box.runtimes.base import Runtime
from bridge.box.runtimes.environment import box_environment
from bridge.box.runtimes.logs import instances_dir
from bridge.box.runtimes.oci.engines import find_engine
from bridge.box.runtimes.oci.runtime import OciRuntime
from bridge.box.runtimes.oci.subprocess_calls import EngineCalls
from bridge.box.runtimes.process.runtime import ProcessRuntime
from bridge.settings import Config


async def open_runtime(config: Config, host_id: str) -> Runtime:
    """The runtime of this host; what it makes belongs to the Box with `host_id`.

    Raises EngineUnsuitable, saying what to install, where there is no engine that will do.
    """
    box = config.box
    if box.runtime == "process":
        root = instances_dir(config.data_dir)
        return ProcessRuntime(root, box.port_range, config.environ | box_environment(config))
    engine = await asyncio.to_thread(
        find_engine, box.engine, isolation=box.isolation, environ=config.environ
    )
    return OciRuntime(
        EngineCalls(engine, config.environ, config.timing.engine),
        host_id,
        secrets=config.data_dir / "secrets",
        environ=box_environment(config),
        address=await asyncio.to_thread(_publishable, box.address),
        isolation=box.isolation,
        sample=config.timing.sample,
    )


def _publishable(address: str) -> str:
    """`address` if ports can be published at it: an address of this host; else "", everywhere."""
    with contextlib.suppress(ValueError, OSError):
        parsed = ipaddress.ip_address(address)
        family = socket.AF_INET6 if parsed.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
        return "" if parsed.is_unspecified else address
    return ""
