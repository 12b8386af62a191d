"""Opens the runtime that the configuration selects."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket

from bridge.box.runtimes.base import Runtime
from bridge.box.runtimes.environment import box_environment, inherited_environment
from bridge.box.runtimes.foreign_errors import mapped_errors
from bridge.box.runtimes.logs import instances_dir
from bridge.box.runtimes.oci.engines import find_engine
from bridge.box.runtimes.oci.runtime import OciRuntime
from bridge.box.runtimes.oci.subprocess_calls import EngineCalls
from bridge.box.runtimes.process.account import check_accounts
from bridge.box.runtimes.process.runtime import ProcessRuntime
from bridge.box.runtimes.process.shim import start_blocker
from bridge.errors import ConfigError
from bridge.process_rights import RestrictedThreads
from bridge.settings import Config


async def open_runtime(config: Config, host_id: str) -> Runtime:
    """The runtime of this host. Its instances belong to the Box with `host_id`.

    Raises EngineUnsuitable, naming what to install, if no usable container engine is there, and
    ConfigError if instances cannot be started without the rights of this Box.
    """
    box = config.box
    if box.runtime == "process":
        root = instances_dir(config.data_dir)
        with mapped_errors("the process runtime cannot be opened"):
            check_accounts(config)
            environ = inherited_environment(config) | box_environment(config)
            if problem := await asyncio.to_thread(start_blocker, RestrictedThreads()):
                raise ConfigError('[box] runtime = "process"', problem)
            return ProcessRuntime(root, box.port_range, environ)
    engine = await asyncio.to_thread(
        find_engine, box.engine, isolation=box.isolation, environ=config.environ
    )
    return OciRuntime(
        EngineCalls(engine, config.environ, config.timing.engine),
        host_id,
        secrets=config.data_dir / "secrets",
        environ=box_environment(config),
        address=await asyncio.to_thread(_publish_address, box.address),
        isolation=box.isolation,
        sample=config.timing.sample,
    )


def _publish_address(address: str) -> str:
    """`address` if ports can be published there; else "", which means at every address."""
    with contextlib.suppress(ValueError, OSError):  # a name, or another host's address
        parsed = ipaddress.ip_address(address)
        family = socket.AF_INET6 if parsed.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
        return "" if parsed.is_unspecified else address
    return ""
