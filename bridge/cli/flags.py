"""Flags that several verbs share: how to reach NATS, what a Box is told, how to print."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from bridge.errors import ConfigError

NATS_GROUP = Group("Connection", sort_key=90)
LOG_GROUP = Group("Logging", sort_key=95)


@Parameter(name="*")
@dataclass
class Link:
    """How to reach NATS. The environment has its say too: NATS_URL, NATS_CREDS, NATS_NKEY,
    NATS_USER, NATS_PASSWORD, NATS_TOKEN, NATS_CA, NATS_CERT, NATS_KEY.
    """

    server: Annotated[
        str | None,
        Parameter(
            name=["--server", "-s"],
            group=NATS_GROUP,
            help="NATS URL, several separated by commas. Default: NATS_URL, or this machine's.",
        ),
    ] = None
    context: Annotated[
        str | None, Parameter(group=NATS_GROUP, help="A context of the nats CLI, by name.")
    ] = None
    prefix: Annotated[
        str | None,
        Parameter(group=NATS_GROUP, help="First token of the fleet's subjects. Default: box."),
    ] = None

    def flags(self) -> dict[str, Any]:
        """As `bridge.config` takes them."""
        return {"url": self.server, "context": self.context, "prefix": self.prefix}


@Parameter(name="*")
@dataclass
class Logging:
    """How much a Box says, and how."""

    log: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        Parameter(group=LOG_GROUP, help="Least level to log. Default: BOX_BRIDGE_LOG, or info."),
    ] = None


ConfigFile = Annotated[
    Path | None,
    Parameter(
        name=["--config", "-c"],
        help="The TOML file. Default: BOX_BRIDGE_CONFIG, or box.toml here if there is one.",
    ),
]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, for programs.")]


@dataclass
class HostFlags:
    name: Annotated[str | None, Parameter(help="This host's name on the bus.")] = None
    address: Annotated[
        str | None, Parameter(help="Where gateways reach this host's instances.")
    ] = None
    max_instances: Annotated[int | None, Parameter(help="The most instances to run here.")] = None
    data_dir: Annotated[Path | None, Parameter(help="Where this Box keeps its state.")] = None
    on_exit: Annotated[
        Literal["leave", "drain"] | None,
        Parameter(help="What becomes of the instances when the Box stops. Default: see above."),
    ] = None

    def flags(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "address": self.address,
            "max_instances": self.max_instances,
            "data_dir": None if self.data_dir is None else str(self.data_dir),
            "on_exit": self.on_exit,
        }


Host = Annotated[HostFlags, Parameter(name="*")]


def pairs(flag: str, given: list[str] | None) -> dict[str, str]:
    """The KEY=VALUEs of a flag that may be given again; raises ConfigError for what is none."""
    found = {}
    for item in given or ():
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(flag, f"{item!r} must be KEY=VALUE")
        found[key] = value
    return found
