"""The container engines: where they differ, in one table, and which one this host has.

All of them share a command line, and `engine_words` says it. What one of them lacks is refused
when a request needs it, from what `Engine.lacks` says of this host.
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

from bridge.errors import EngineUnsuitable

_PATIENCE: Final = 10.0  # seconds for `--version`, which asks no daemon
_VERSION: Final = re.compile(
    r"(podman|docker|nerdctl|a3s-box)\b.*?(\d+)\.(\d+)(\S*)", re.IGNORECASE
)
_CGROUPS_V2: Final = Path("/sys/fs/cgroup/cgroup.controllers")


class EngineKind(Struct, frozen=True, kw_only=True):
    """What is particular about one kind of engine.

    `oldest` is the oldest version that has all that is asked of it. With `creates` an instance is
    made by ``create`` and let go by ``start``, else by one ``run -d``. `inspects_many` says whether
    ``inspect`` takes several names, `image` which command looks at an image, `listing` and
    `sampling` which format makes ``ps`` and ``stats`` speak JSON, `remove` what ends and removes at
    once. `address` says whether a port can be published at one address of the host, `swap` whether
    swap can be limited, `dashes` whether the command follows ``--``, `isolation` which values of
    ``[box] isolation`` it knows. `trims` says that blanks around the values of an environment file
    are lost.
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
    trims: bool = False


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
            trims=True,
        ),
    )
}


class Engine(Struct, frozen=True, kw_only=True):
    """An engine of this host: its kind, the program, its version.

    `lacks` says, by the field of a request's config (``vcpus``, ``memory_mib``, ``env``), why it
    cannot honour that here; what `env` says is about values with blanks around them.
    """

    kind: EngineKind
    path: str
    version: str
    lacks: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For people: ``podman 4.3.1``."""
        return f"{self.kind.name} {self.version}"


def find_engine(name: str, *, isolation: str = "", environ: Mapping[str, str]) -> Engine:
    """The engine that ``[box] engine`` names: a kind that is looked for on the PATH, or a path.

    Which kind a path is, it says itself. Asks for the version alone: whether a daemon behind it
    answers is another question. Blocks, for ten seconds at most. Raises EngineUnsuitable, saying
    what to install or to set.
    """
    path = shutil.which(name, path=environ.get("PATH", os.defpath))
    if path is None:
        raise EngineUnsuitable(name, f"there is no such program here: {_install(name)}")
    said = _version_of(name, path, environ)
    match = _VERSION.search(said)
    if match is None:
        known = ", ".join(KINDS)
        raise EngineUnsuitable(name, f"{path} --version says {said[:80]!r}: it is none of {known}")
    kind = KINDS[match[1].lower()]
    version = f"{match[2]}.{match[3]}{match[4].rstrip(',')}"
    if (int(match[2]), int(match[3])) < kind.oldest:
        least = ".".join(map(str, kind.oldest))
        raise EngineUnsuitable(
            name, f"{path} is version {version}, {least} is needed: {kind.install}"
        )
    if isolation not in kind.isolation:
        raise EngineUnsuitable(
            name, f"isolation = {isolation!r} is not for {kind.name}: leave it out, or use a3s-box"
        )
    lacks = _lacks(kind, version, root=os.geteuid() == 0, unified=_CGROUPS_V2.exists())
    return Engine(kind=kind, path=path, version=version, lacks=lacks)


def _install(name: str) -> str:
    if kind := KINDS.get(name):
        return f"install it ({kind.install}), or name another [box] engine"
    return "give the path of podman, docker, nerdctl or a3s-box, or of a script that calls one"


def _version_of(name: str, path: str, environ: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            env=dict(environ),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise EngineUnsuitable(name, f"{path} --version: {exc}") from exc
    if done.returncode:
        said = done.stderr[-200:].decode(errors="replace").strip()
        raise EngineUnsuitable(name, f"{path} --version: exit code {done.returncode}: {said}")
    return done.stdout[:1000].decode(errors="replace").strip()


def _lacks(kind: EngineKind, version: str, *, root: bool, unified: bool) -> dict[str, str]:
    """What an engine of this kind lacks on this host. Pure."""
    lacks = {}
    if kind.name == "podman" and not root and not unified:
        why = f"podman {version} without root needs cgroups v2 to limit it: run the Box as root"
        lacks = {"vcpus": why, "memory_mib": why}
    if kind.trims:
        lacks["env"] = f"{kind.name} loses the blanks around a value: quote it"
    return lacks
