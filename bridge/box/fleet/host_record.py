"""What this host tells the fleet of itself: what it can run, and how much of it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from bridge.box.fleet import fence
from bridge.box.state.records import Demand, HostRecord, Offer
from bridge.box.state.runtime_limits import NO_LACKS, fixed_port, refusal
from bridge.errors import ConfigError
from bridge.protocol import ScaleConfig
from bridge.settings import Config, ServiceConfig
from bridge.version import VERSION


def host_record(
    config: Config,
    offered: Mapping[str, Offer],
    host_id: str,
    lacks: Mapping[str, str],
    place: str,
) -> HostRecord:
    """The host's record; `offered` is what `offers` found, `lacks` what its runtime lacks here."""
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
    )


def offers(config: Config, lacks: Mapping[str, str] = NO_LACKS) -> dict[str, Offer]:
    """What this host offers to run. Raises ConfigError for what its runtime cannot honour, or lacks
    here.
    """
    found = {}
    for name, service in config.services.items():
        defaults = ScaleConfig(
            image=service.image or None,
            vcpus=service.vcpus,
            memory_mib=service.memory_mib,
            env=service.env,
            port_map=service.port_map,
        )
        runtime = config.box.runtime
        why = refusal(runtime, defaults, cpus=cpus(), lacks=lacks) or _misfit(runtime, service)
        why = why or (fence.unfit(config.timing) if service.fence else "")
        if why:
            raise ConfigError(f"[services.{name}]", why)
        found[name] = Offer(
            fixed_port=fixed_port(service.port_map),
            needs=service.needs,
            demand=Demand.of(service.vcpus, service.memory_mib),
            max_surge=service.max_surge,
            image=service.image,
        )
    return found


def _misfit(runtime: str, service: ServiceConfig) -> str:
    """What is configured for a service that its runtime has no meaning for."""
    if runtime == "process":
        return "entrypoint is for the oci runtime: put it into command" * bool(service.entrypoint)
    if not service.image:
        return "`image` is missing: the oci runtime makes instances from images"
    if service.cwd:
        return "cwd is for the process runtime: a container starts where its image says"
    if service.fence:
        return "fence = true is for the process runtime: no shim can watch over a container"
    return ""


def memory_mib() -> int:
    """The memory of this host."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


def cpus() -> int:
    """The processors that this host's instances may use."""
    return len(os.sched_getaffinity(0))
