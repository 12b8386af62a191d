"""What the environment gives one process: its log, its service manager, its instance."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import msgspec

from bridge.config.layers import (
    mapped_errors,
    number,
)
from bridge.errors import ConfigError
from bridge.settings import (
    InstanceConfig,
    LogConfig,
    NotifyConfig,
)

# Variables that a Box gives its instances, besides NATS_URL, NATS_CA and BOX_BRIDGE_PREFIX.
INSTANCE_ID: Final = "BOX_INSTANCE_ID"
SERVICE: Final = "BOX_SERVICE"
PORT: Final = "PORT"
HOST: Final = "BOX_HOST"
ADDRESS: Final = "BOX_ADDRESS"
METADATA: Final = "BOX_METADATA"
REGISTRATION: Final = "BOX_REGISTRATION"


def load_log(
    level: str | None = None, style: str | None = None, *, environ: Mapping[str, str] = os.environ
) -> LogConfig:
    """The log settings; arguments override ``BOX_BRIDGE_LOG`` and ``BOX_BRIDGE_LOG_FORMAT``."""
    return LogConfig(
        level=level or environ.get("BOX_BRIDGE_LOG") or "info",
        style=style or environ.get("BOX_BRIDGE_LOG_FORMAT") or "text",
    )


def load_notify(*, environ: Mapping[str, str] = os.environ) -> NotifyConfig:
    """The settings that the service manager gives this process: see sd_notify(3)."""
    address, text = environ.get("NOTIFY_SOCKET", ""), environ.get("WATCHDOG_USEC") or "0"
    interval = number(text)
    if interval is None:
        raise ConfigError("WATCHDOG_USEC", f"{text[:40]!r} is not a number of microseconds")
    watched = environ.get("WATCHDOG_PID") or str(os.getpid())
    mine = bool(address) and watched == str(os.getpid())
    return NotifyConfig(address=address, watchdog=interval / 1e6 if mine else 0.0)


def load_instance(*, environ: Mapping[str, str] = os.environ) -> InstanceConfig:
    """The variables that a Box gave this process, if a Box started it.

    Raises ConfigError for a malformed one. Without a Box, a malformed ``PORT`` is ignored: other
    programs set that variable, too.
    """
    text = environ.get(PORT) or "0"
    instance_id = environ.get(INSTANCE_ID, "")
    port = number(text)
    if port is None or port > 65535:
        if instance_id:
            raise ConfigError(PORT, f"{text[:40]!r} is not a port")
        port = 0
    with mapped_errors(METADATA, "must be a JSON object of strings: "):
        metadata = msgspec.json.decode(environ.get(METADATA) or "{}", type=dict[str, str])
    return InstanceConfig(
        instance_id=instance_id,
        service=environ.get(SERVICE, ""),
        host=environ.get(HOST, ""),
        address=environ.get(ADDRESS, ""),
        port=port,
        metadata=metadata,
        registered_by_box=bool(instance_id) and environ.get(REGISTRATION) == "box",
    )


def child_environment(
    instance: Mapping[str, str], *, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment of a program that this process starts as an instance."""
    return {**environ, **instance}
