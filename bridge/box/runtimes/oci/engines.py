"""The container engines: their differences in one table, and the search for this host's engine.

All engines share most of a command line (commands.py). A request that needs what an engine lacks
is refused, with the reason from `Engine.lacks`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct, field

from bridge.box.runtimes.foreign_errors import FOREIGN, describe
from bridge.errors import EngineUnsuitable

_TIMEOUT: Final = 10.0  # seconds for `--version`, which asks no daemon
_VERSION: Final = re.compile(
    r"(podman|docker|nerdctl|a3s-box)\b.*?(\d+)\.(\d+)(\S*)", re.IGNORECASE
)
_CGROUPS_V2: Final = Path("/sys/fs/cgroup/cgroup.controllers")


class EngineKind(Struct, frozen=True, kw_only=True):
    """The properties of one kind of engine.

    - `oldest`: the oldest version that supports every call of this package.
    - `install`: how to install it, for messages.
    - `creates`: whether it has ``create`` and ``start``; else ``run -d`` does both.
    - `inspects_many`: whether ``inspect`` takes several names.
    - `image`: the command that inspects an image.
    - `listing`, `sampling`: the arguments that make ``ps`` and ``stats`` print JSON.
    - `remove`: the command that kills and removes containers.
    - `address`: whether it can publish a port at one address of the host.
    - `swap`: whether it can limit swap.
    - `dashes`: whether the container's command follows ``--``.
    - `isolation`: the values of ``[box] isolation`` that it knows.
    - `timed_logs`: whether ``logs`` takes ``--timestamps`` and ``--since``.
    - `trims`: whether it drops the blanks around a value in an environment file.
    - `bounds_logs`: whether it takes a bound for a container's log whatever its log driver is.
      docker refuses the option where the driver of its configuration has none.
    """

    name: str
    oldest: tuple[int, int]
    install: str
    creates: bool = True
    inspects_many: bool = True
    image: tuple[str, ...] = ("image", "inspect")
    listing: tuple[str, ...] = ("--format", "{{json .}}")
    sampling: tuple[str, ...] = ("--format", "{{json .}}")
    remove: tuple[str, ...] = ("rm", "-f")
    address: bool = True
    swap: bool = True
    dashes: bool = False
    isolation: tuple[str, ...] = ("",)
    timed_logs: bool = True
    trims: bool = False
    bounds_logs: bool = False


KINDS: Final[dict[str, EngineKind]] = {
    kind.name: kind
    for kind in (
        EngineKind(
            name="podman",
            oldest=(3, 0),
            install="apt-get install podman, or https://podman.io/docs/installation",
            listing=("--format", "json"),
            sampling=("--format", "json"),
            remove=("rm", "-f", "-t", "0"),
            bounds_logs=True,
        ),
        EngineKind(
            name="docker",
            oldest=(20, 10),
            install="apt-get install docker.io, or https://docs.docker.com/engine/install",
        ),
        EngineKind(
            name="nerdctl",
            oldest=(1, 0),
            install="https://github.com/containerd/nerdctl/releases (the full archive)",
        ),
        EngineKind(
            name="a3s-box",
            oldest=(2, 0),
            install="https://github.com/A3S-Lab/Box",
            creates=False,
            inspects_many=False,
            image=("image-inspect",),
            listing=("--format", "json"),
            sampling=(),
            address=False,
            swap=False,
            dashes=True,
            isolation=("", "sandbox"),
            timed_logs=False,
            trims=True,
        ),
    )
}


class Engine(Struct, frozen=True, kw_only=True):
    """An engine of this host: its kind, its program, its version.

    `lacks` maps a field of a request's config (``vcpus``, ``memory_mib``, ``env``) to the reason
    why this engine cannot honour it here. `env` concerns only values with blanks around them.
    """

    kind: EngineKind
    path: str
    version: str
    lacks: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name for messages: ``podman 4.3.1``."""
        return f"{self.kind.name} {self.version}"


def find_engine(name: str, *, isolation: str = "", environ: Mapping[str, str]) -> Engine:
    """The engine that ``[box] engine`` names: a kind that is searched on the PATH, or a path.

    ``--version`` tells which kind a path is. A daemon behind the engine is not called. Blocks for
    10 s at most. Raises EngineUnsuitable, naming what to install or to set.
    """
    path = shutil.which(name, path=environ.get("PATH", os.defpath))
    if path is None:
        raise EngineUnsuitable(name, f"there is no such program here: {_install(name)}")
    output = _version_output(name, path, environ)
    match = _VERSION.search(output)
    if match is None:
        known = ", ".join(KINDS)
        raise EngineUnsuitable(
            name, f"{path} --version prints {output[:80]!r}, but must be one of {known}"
        )
    kind = KINDS[match[1].lower()]
    version = f"{match[2]}.{match[3]}{match[4].rstrip(',')}"
    if (int(match[2]), int(match[3])) < kind.oldest:
        least = ".".join(map(str, kind.oldest))
        raise EngineUnsuitable(
            name, f"{path} is version {version}; install {least} or later: {kind.install}"
        )
    if isolation not in kind.isolation:
        raise EngineUnsuitable(
            name, f"{kind.name} has no isolation = {isolation!r}: leave it out, or use a3s-box"
        )
    lacks = _lacks(kind, version, root=os.geteuid() == 0, unified=_CGROUPS_V2.exists())
    return Engine(kind=kind, path=path, version=version, lacks=lacks)


def _install(name: str) -> str:
    if kind := KINDS.get(name):
        return f"install it ({kind.install}), or name another [box] engine"
    return "give the path of podman, docker, nerdctl or a3s-box, or of a script that calls one"


def _version_output(name: str, path: str, environ: Mapping[str, str]) -> str:
    try:
        result = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            env=dict(environ),
            check=False,
        )
    except FOREIGN as exc:
        raise EngineUnsuitable(name, f"{path} --version: {describe(exc)}") from exc
    if result.returncode:
        error = result.stderr[-200:].decode(errors="replace").strip()
        raise EngineUnsuitable(name, f"{path} --version: exit code {result.returncode}: {error}")
    return result.stdout[:1000].decode(errors="replace").strip()


def _lacks(kind: EngineKind, version: str, *, root: bool, unified: bool) -> dict[str, str]:
    """`Engine.lacks` for this kind of engine on this host. Pure."""
    lacks = {}
    if kind.name == "podman" and not root and not unified:
        why = f"podman {version} without root needs cgroups v2 to limit it: run the Box as root"
        lacks = {"vcpus": why, "memory_mib": why}
    if kind.trims:
        lacks["env"] = f"{kind.name} drops the blanks around a value: quote it"
    return lacks
