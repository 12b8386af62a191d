"""The command lines for container engines: each call's arguments, built from values. Pure.

No argument is secret, because every user of the host can read a command line. An instance gets its
environment from a file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from msgspec import Struct

from bridge.box.runtimes.oci.engines import EngineKind
from bridge.box.state.runtime_limits import guest_port, port_pair

LABEL_HOST: Final = "box-bridge.host-id"
LABEL_INSTANCE: Final = "box-bridge.instance"
LABEL_SERVICE: Final = "box-bridge.service"
LABEL_SLOT: Final = "box-bridge.slot"

_TAIL: Final = 1000  # lines of a container's log


class ContainerSpec(Struct, frozen=True, kw_only=True):
    """A container to create. `address` is where its ports are published; "" means everywhere.
    `log_bytes` bounds its log where the engine can do that; 0 leaves it to the engine.
    """

    name: str
    image: str
    entrypoint: list[str]
    command: list[str]
    ports: list[str]
    vcpus: int | None
    memory_mib: int | None
    labels: dict[str, str]
    env_file: str
    address: str = ""
    isolation: str = ""
    stop_signal: str = ""
    log_bytes: int = 0


def labels(host_id: str, instance_id: str, service: str, slot: int) -> dict[str, str]:
    """The labels by which a Box, or a person, finds the container of an instance."""
    return {
        LABEL_HOST: host_id,
        LABEL_SERVICE: service,
        LABEL_SLOT: str(slot),
        LABEL_INSTANCE: instance_id,
    }


def create(kind: EngineKind, spec: ContainerSpec) -> list[str]:
    """Create the container. An engine without ``create`` starts it in the same call."""
    arguments = ["create"] if kind.creates else ["run", "-d"]
    arguments += ["--name", spec.name]
    for key, value in spec.labels.items():
        arguments += ["--label", f"{key}={value}"]
    for entry in spec.ports or [f"0:{guest_port([])}"]:
        arguments += ["-p", _publish(kind, entry, spec.address)]
    arguments += _limits(kind, spec)
    if spec.isolation:
        arguments += ["--isolation", spec.isolation]
    if spec.stop_signal:
        arguments += ["--stop-signal", spec.stop_signal]
    arguments += ["--env-file", spec.env_file]
    if spec.entrypoint:
        arguments += ["--entrypoint", spec.entrypoint[0]]  # docker takes a single word
    arguments.append(spec.image)
    rest = [*spec.entrypoint[1:], *spec.command]
    if rest and kind.dashes:
        arguments.append("--")
    port = str(guest_port(spec.ports))
    return arguments + [word.replace("{port}", port) for word in rest]


def _limits(kind: EngineKind, spec: ContainerSpec) -> list[str]:
    """The options that bound what the container uses."""
    arguments: list[str] = []
    if spec.vcpus is not None:
        arguments += ["--cpus", str(spec.vcpus)]
    if spec.memory_mib is not None:
        arguments += ["--memory", f"{spec.memory_mib}m"]
        if kind.swap:
            arguments += ["--memory-swap", f"{spec.memory_mib}m"]  # the default adds as much swap
    if spec.log_bytes and kind.bounds_logs:
        arguments += ["--log-opt", f"max-size={spec.log_bytes}b"]
    return arguments


def start(name: str) -> list[str]:
    """Start a container that was created."""
    return ["start", name]


def stop(name: str, grace: float) -> list[str]:
    """Send the stop signal, and SIGKILL after `grace` seconds, rounded up to whole seconds."""
    return ["stop", "-t", str(math.ceil(grace)), name]


def remove(kind: EngineKind, names: Sequence[str]) -> list[str]:
    """Kill containers that run, and remove them."""
    return [*kind.remove, *names]


def inspect(names: Sequence[str]) -> list[str]:
    """Show the state of containers: of one for each call unless `kind.inspects_many`."""
    return ["inspect", *names]


def list_containers(kind: EngineKind, host_id: str) -> list[str]:
    """List the containers of one Box, including those that have ended."""
    return ["ps", "-a", "--filter", f"label={LABEL_HOST}={host_id}", *kind.listing]


def stats(kind: EngineKind) -> list[str]:
    """Show what all running containers use."""
    return ["stats", "--no-stream", *kind.sampling]


def logs(kind: EngineKind, name: str, since: int = 0) -> list[str]:
    """Print a container's log; where the engine knows times with them, and from about `since` on, a
    time in nanoseconds. podman 4.3 drops an unterminated last line with ``--tail``.
    """
    if not kind.timed_logs:
        return ["logs", name]
    at = datetime.fromtimestamp(max(0, since // 10**9 - 1), UTC)
    after = ["--since", f"{at:%Y-%m-%dT%H:%M:%SZ}"] if since else []
    return ["logs", "--timestamps", *after, name]


def tail(kind: EngineKind, name: str) -> list[str]:
    """Print the end of a container's log, where the whole log would take too long."""
    times = ["--timestamps"] if kind.timed_logs else []
    return ["logs", *times, "--tail", str(_TAIL), name]


def pull(image: str) -> list[str]:
    """Pull an image from its registry."""
    return ["pull", image]


def inspect_image(kind: EngineKind, image: str) -> list[str]:
    """Exit with 0 if the image is on this host."""
    return [*kind.image, image]


def env_file(env: Mapping[str, str]) -> bytes:
    """The environment file of an instance; `runtime_limits` refuses what it cannot hold."""
    return b"".join(os.fsencode(f"{key}={value}\n") for key, value in env.items())


def _publish(kind: EngineKind, entry: str, address: str) -> str:
    """The value of ``-p`` for ``host:guest``; host 0 means any port."""
    host, guest = port_pair(entry)
    if not (address and kind.address):
        # Engines that publish at an address take an empty host port for any.
        return f"{host or ('' if kind.address else 0)}:{guest}".removeprefix(":")
    at = f"[{address}]" if ":" in address else address
    return f"{at}:{host or ''}:{guest}"
