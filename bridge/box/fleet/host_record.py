"""The record of this host: what it can run, and how much of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bridge.box.fleet import fence
from bridge.box.state.records import Demand, HostRecord, Offer
from bridge.box.state.runtime_limits import NO_LACKS, config_blocker, fixed_port
from bridge.box.state.settings_id import settings_id
from bridge.errors import ConfigError
from bridge.protocol import ScaleConfig
from bridge.settings import BoxConfig, Config, ServiceConfig
from bridge.version import VERSION


def host_record(
    config: Config,
    offered: Mapping[str, Offer],
    host_id: str,
    lacks: Mapping[str, str],
    place: str,
) -> HostRecord:
    """The host's record. `offered` is from `offers`; `lacks` is what its runtime cannot honour."""
    box = config.box
    return HostRecord(
        host_id=host_id,
        runtime=box.runtime,
        cpus=cpus(),
        max_instances=box.max_instances,
        services=dict(offered),
        labels=box.labels,
        memory_mib=memory_mib(),
        images=tuple(box.allow_images),
        lacks=dict(lacks),
        version=VERSION,
        place=place,
        request_env=tuple(box.request_env),
        request_ports=(box.request_range[0], box.request_range[-1]),
        decides=box.decides,
    )


def offers(config: Config, lacks: Mapping[str, str] = NO_LACKS) -> dict[str, Offer]:
    """The services that this host offers.

    Raises ConfigError for a setting that its runtime cannot honour in general, or on this host.
    """
    by_service = {}
    for name, service in config.services.items():
        defaults = ScaleConfig(
            image=service.image or None,
            vcpus=service.vcpus,
            memory_mib=service.memory_mib,
            env={
                key: value if isinstance(value, str) else "" for key, value in service.env.items()
            },
            port_map=service.port_map,
        )
        runtime = config.box.runtime
        problem = (
            config_blocker(runtime, defaults, cpus=cpus(), lacks=lacks)
            or _misfit(config.box, service)
            or (fence.blocker(config.timing) if service.fence else None)
        )
        if problem:
            raise ConfigError(f"[services.{name}]", problem)
        by_service[name] = Offer(
            fixed_port=fixed_port(service.port_map),
            needs=service.needs,
            demand=Demand.of(service.vcpus, service.memory_mib),
            max_surge=service.max_surge,
            image=service.image,
            request_env=tuple(service.request_env),
            settings=settings_id(service),
        )
    return by_service


def _misfit(box: BoxConfig, service: ServiceConfig) -> str | None:
    """Why the service's configuration is not for the runtime of this host."""
    if box.runtime == "process":
        if service.entrypoint:
            return "entrypoint is for the oci runtime: add it to the front of command"
    elif not service.image:
        return "`image` is missing: the oci runtime creates instances from images"
    elif service.cwd:
        return "cwd is for the process runtime: a container starts in its image's directory"
    elif service.user:
        return "user is for the process runtime: an image has a user of its own"
    elif service.fence:
        return "fence = true is for the process runtime: no shim can end a container"
    elif service.stop_scope:
        return "stop_scope is for the process runtime: an engine signals the main process"
    elif service.stop_signal and Path(box.engine).name == "a3s-box":
        return "stop_signal is not supported by a3s-box: leave it out"
    return None


def memory_mib() -> int:
    """The memory of this host, in MiB."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


def cpus() -> int:
    """The number of processors that instances may use."""
    return len(os.sched_getaffinity(0))
