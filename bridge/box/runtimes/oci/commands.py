"""What is said to a container engine: each call's arguments, from values. Pure.

Nothing secret is among them: everybody on the host can read a command line. What an instance gets
in its environment goes by a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from bridge.box.runtimes.oci.engines import EngineKind
from bridge.box.state.runtime_limits import guest_port, port_pair

LABEL_HOST: Final = "box-bridge.host-id"
LABEL_INSTANCE: Final = "box-bridge.instance"
LABEL_SERVICE: Final = "box-bridge.service"
LABEL_SLOT: Final = "box-bridge.slot"

_LINES: Final = 1000  # of a container's log that are kept when it has ended


class ContainerSpec(Struct, frozen=True, kw_only=True):
    """A container to be made. `address` is where its ports are published, "" for everywhere."""

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


def labels(host_id: str, instance_id: str, service: str, slot: int) -> dict[str, str]:
    """By which a container is found again, by its Box and by people."""
    return {
        LABEL_HOST: host_id,
        LABEL_SERVICE: service,
        LABEL_SLOT: str(slot),
        LABEL_INSTANCE: instance_id,
    }


def make(kind: EngineKind, order: ContainerSpec) -> list[str]:
    """Make the container; with an engine that does not ``create``, let it go as well."""
    words = ["create"] if kind.creates else ["run", "-d"]
    words += ["--name", order.name]
    for key, value in order.labels.items():
        words += ["--label", f"{key}={value}"]
    for entry in order.ports or [f"0:{guest_port([])}"]:
        words += ["-p", _published(kind, entry, order.address)]
    if order.vcpus is not None:
        words += ["--cpus", str(order.vcpus)]
    if order.memory_mib is not None:
        words += ["--memory", f"{order.memory_mib}m"]
        if kind.swap:
            words += ["--memory-swap", f"{order.memory_mib}m"]  # else it gets as much again
    if order.isolation:
        words += ["--isolation", order.isolation]
    words += ["--env-file", order.env_file]
    if order.entrypoint:
        words += ["--entrypoint", order.entrypoint[0]]  # one word is all that docker takes
    words.append(order.image)
    rest = [*order.entrypoint[1:], *order.command]
    if rest and kind.dashes:
        words.append("--")
    port = str(guest_port(order.ports))
    return words + [word.replace("{port}", port) for word in rest]


def start(name: str) -> list[str]:
    """Let a container go that was made."""
    return ["start", name]


def stop(name: str, grace: float) -> list[str]:
    """Ask it to end, and kill it after `grace` seconds: engines take whole ones."""
    return ["stop", "-t", str(math.ceil(grace)), name]


def remove(kind: EngineKind, names: Sequence[str]) -> list[str]:
    """End containers at once, if they run, and remove them."""
    return [*kind.remove, *names]


def inspect(names: Sequence[str]) -> list[str]:
    """Ask for all that is known of containers; of one at a time unless `kind.inspects_many`."""
    return ["inspect", *names]


def listing(kind: EngineKind, host_id: str) -> list[str]:
    """Ask for the containers of one Box, ended ones too."""
    return ["ps", "-a", "--filter", f"label={LABEL_HOST}={host_id}", *kind.listing]


def sampling(kind: EngineKind) -> list[str]:
    """Ask what all running containers use."""
    return ["stats", "--no-stream", *kind.sampling]


def logs(name: str) -> list[str]:
    """Ask for all that a container said: podman 4.3 loses a last line without an end in a tail."""
    return ["logs", name]


def tail(name: str) -> list[str]:
    """Ask for the last that a container said, where all would take too long."""
    return ["logs", "--tail", str(_LINES), name]


def look_at_image(kind: EngineKind, image: str) -> list[str]:
    """Ask whether an image is here."""
    return [*kind.image, image]


def env_file(env: Mapping[str, str]) -> bytes:
    """The file by which an instance gets its environment; `rules` refuse what it cannot carry."""
    return "".join(f"{key}={value}\n" for key, value in env.items()).encode()


def _published(kind: EngineKind, entry: str, address: str) -> str:
    """A ``-p`` for ``host:guest``, where host 0 is any port."""
    host, guest = port_pair(entry)
    if not (address and kind.address):
        # Engines that publish at an address take an empty host port for any.
        return f"{host or ('' if kind.address else 0)}:{guest}".removeprefix(":")
    at = f"[{address}]" if ":" in address else address
    return f"{at}:{host or ''}:{guest}"
