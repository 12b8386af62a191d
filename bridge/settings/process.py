"""The settings of one process: a whole Box, an instance, its service manager and its log."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct, field

from bridge.settings.box import BoxConfig
from bridge.settings.nats import NatsConfig, Timing
from bridge.settings.service import ServiceConfig


class Config(Struct, frozen=True, kw_only=True):
    """The whole configuration of a Box.

    Relative paths of services start at `directory`. Instances inherit `environ`: the environment
    without the credentials of this program. `credentials` is the directory in which systemd put
    those of the services, "" without one.
    """

    box: BoxConfig = field(default_factory=BoxConfig)
    nats: NatsConfig = field(default_factory=NatsConfig)
    timing: Timing = field(default_factory=Timing)
    services: dict[str, ServiceConfig] = field(default_factory=dict)
    directory: Path = field(default_factory=Path.cwd)
    environ: dict[str, str] = field(default_factory=dict)
    credentials: str = ""

    @property
    def data_dir(self) -> Path:
        return Path(self.box.data_dir)


class InstanceConfig(Struct, frozen=True, kw_only=True):
    """What a Box gives an instance in its environment; empty if no Box started the process.

    `host` is the Box's name, `address` where gateways reach this host. With `registered_by_box` the
    Box registers the instance, so the instance must not register itself.
    """

    instance_id: str = ""
    service: str = ""
    host: str = ""
    address: str = ""
    port: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    registered_by_box: bool = False


class NotifyConfig(Struct, frozen=True, kw_only=True):
    """The service manager: `address` of its socket, "" without one.

    The process must notify it at least every `watchdog` seconds; 0 means never.
    """

    address: str = ""
    watchdog: float = 0.0


class LogConfig(Struct, frozen=True, kw_only=True):
    """The lowest level to log, and the format: ``text`` or ``json``."""

    level: str = "info"
    style: str = "text"
