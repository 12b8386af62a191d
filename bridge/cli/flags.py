"""Flags that several verbs share. It imports nothing that a verb needs only when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from bridge.cli.completion import HOSTS, SERVICES, completer
from bridge.errors import ConfigError

CONNECTION = Group("Connection", sort_key=90)
LOGGING = Group("Logging", sort_key=95)
LONGEST = 86400
"""The longest time that a flag takes, in seconds."""


@Parameter(name="*")
@dataclass
class Link:
    """How to reach NATS. A flag overrides its environment variable: NATS_URL, NATS_CREDS,
    NATS_NKEY, NATS_USER, NATS_PASSWORD, NATS_TOKEN, NATS_CA, NATS_CERT or NATS_KEY.
    """

    server: Annotated[
        str | None,
        Parameter(
            name=["--server", "-s"],
            group=CONNECTION,
            help="NATS URL, several separated by commas. Default: NATS_URL, or this machine's.",
        ),
    ] = None
    context: Annotated[
        str | None, Parameter(group=CONNECTION, help="A context of the nats CLI, by name.")
    ] = None
    prefix: Annotated[
        str | None,
        Parameter(group=CONNECTION, help="First token of the fleet's subjects. Default: box."),
    ] = None

    def flags(self) -> dict[str, Any]:
        """The settings as `bridge.config` takes them."""
        return {"url": self.server, "context": self.context, "prefix": self.prefix}


@Parameter(name="*")
@dataclass
class Logging:
    """How much a long-running verb logs."""

    log: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        Parameter(group=LOGGING, help="Least level to log. Default: BOX_BRIDGE_LOG, or info."),
    ] = None


def configure_logs(logging: Logging | None, *, json: bool) -> None:
    """Log to stderr as the flags and the environment say; `json` makes each record a JSON line."""
    from bridge.config import load_log
    from bridge.observe import configure_logging

    log = load_log(logging.log if logging else None, "json" if json else None)
    configure_logging(log.level, log.style)


@dataclass
class HostFlags:
    """The settings of a Box that flags override."""

    name: Annotated[str | None, Parameter(help="This host's name on the bus.")] = None
    address: Annotated[
        str | None, Parameter(help="The address where gateways reach this host's instances.")
    ] = None
    max_instances: Annotated[int | None, Parameter(help="The most instances to run here.")] = None
    data_dir: Annotated[Path | None, Parameter(help="Where this Box keeps its state.")] = None
    on_exit: Annotated[
        Literal["leave", "drain"] | None,
        Parameter(help="Leave or drain the instances when the Box stops. Default: see above."),
    ] = None

    def flags(self) -> dict[str, Any]:
        """The settings as `bridge.config` takes them."""
        return {
            "name": self.name,
            "address": self.address,
            "max_instances": self.max_instances,
            "data_dir": None if self.data_dir is None else str(self.data_dir),
            "on_exit": self.on_exit,
        }


def _check_reason(_: object, reason: str) -> None:
    from bridge.admin_protocol import MAX_WORDS

    if len(reason) > MAX_WORDS:
        raise ValueError(f"Must have {MAX_WORDS} letters at most, not {len(reason)}.")


Host = Annotated[HostFlags, Parameter(name="*")]
ConfigFile = Annotated[
    Path | None,
    Parameter(
        name=["--config", "-c"],
        help="The TOML file. Default: BOX_BRIDGE_CONFIG, or box.toml here if there is one.",
    ),
]
DataDir = Annotated[
    Path | None, Parameter(help="The data directory of the Box. Default: the configured one.")
]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, for programs.")]
Watch = Annotated[
    bool, Parameter(name=["--watch", "-w"], negative="", help="Refresh every second, until Ctrl-C.")
]
AuthDir = Annotated[Path, Parameter(name="DIR", help="The directory to make; it holds secrets.")]
AuthDirOption = Annotated[
    Path | None,
    Parameter(name="--dir", help="The directory of `auth init`. Default: this one, or ./auth."),
]
RoleName = Literal[
    "box", "runner", "gateway", "consumer", "durable", "relay", "operator", "instance"
]
MemberRole = Literal[RoleName, "leaf"]
UserName = Annotated[str, Parameter(help="The user, as `auth list` names it.")]
complete_services = completer(SERVICES)
ServiceName = Annotated[
    str,
    Parameter(completer=complete_services, help="The service, as a Box's configuration names it."),
]
OptionalService = Annotated[
    str, Parameter(completer=complete_services, help="One service. Default: all.")
]
HostName = Annotated[
    str, Parameter(completer=completer(HOSTS), help="The host, as `box-bridge hosts` names it.")
]
Reason = Annotated[
    str,
    Parameter(
        validator=_check_reason, help="The reason; it is kept with the order, and `hosts` shows it."
    ),
]
WaitForIt = Annotated[
    bool,
    Parameter(
        name="--wait",
        negative="",
        help="Return when gateways route to the instances, and to no other.",
    ),
]
RequestTimeout = Annotated[
    float | None,
    Parameter(
        validator=Number(gt=0, lte=LONGEST),
        help="Seconds for the whole verb. Default: 10, or 120 with --wait.",
    ),
]
OrderTimeout = Annotated[
    float,
    Parameter(validator=Number(gt=0, lte=LONGEST), help="The longest time to wait, in seconds."),
]


def parse_pairs(flag: str, items: Sequence[str] | None) -> dict[str, str]:
    """The mapping that repeated KEY=VALUE arguments of `flag` make. Raises ConfigError."""
    pairs = {}
    for item in items or ():
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(flag, f"{item!r} must be KEY=VALUE")
        pairs[key] = value
    return pairs
