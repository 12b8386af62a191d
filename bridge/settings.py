"""What a Box can be told, as frozen Structs: the tables of its configuration file.

Where the values come from is the business of `bridge.config`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from msgspec import Meta, Struct, field

from bridge.errors import ProtocolError, without_secret
from bridge.images import MAX_PATTERNS, check_pattern
from bridge.protocol import U8, U32
from bridge.subjects import DEFAULT_PREFIX, Subjects, is_name
from bridge.validation import check_metadata

DEFAULT_URL: Final = "nats://127.0.0.1:4222"
ENGINES: Final = ("podman", "docker", "nerdctl", "a3s-box")
_SUBJECT: Final = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")

Seconds = Annotated[float, Meta(ge=0)]
Interval = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class Probe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a Box finds out that an instance is ready, and goes on being healthy.

    `http` is a path: any answer below 400 will do. Without it, a TCP connection that is
    accepted will do. After Ready it is repeated every `interval` seconds; `failures` in a row
    make the instance unhealthy, one success makes it healthy again.
    """

    http: str | None = None
    tcp: bool = False
    interval: Interval = 5.0
    timeout: Interval = 2.0
    failures: Count = 3

    def __post_init__(self) -> None:
        if self.http is not None and self.tcp:
            raise ValueError('choose one of http = "/path" and tcp = true')
        if self.http is not None and not self.http.startswith("/"):
            raise ValueError(f"http = {self.http!r} must be a path that starts with '/'")


class ServiceConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[services.<name>]``: how one instance of a service is made.

    `{port}` in `command` becomes the instance's port. Times are in seconds. `image`, `vcpus`,
    `memory_mib`, `env` and `port_map` are the defaults that a request's config overrides. What has
    an image may leave `command` and `entrypoint` to the image. `needs`
    are labels that a host must have to run it. With `fence` its instances end before the lease of
    a host that is cut off, so that what takes their slots over never runs beside them.
    `max_surge` is how many extra instances there may be while instances are being replaced.
    `registration` says who announces an instance to gateways: its ``box``, or it``self``.
    """

    command: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    image: str = ""
    cwd: str = ""
    env: dict[str, str] = field(default_factory=dict)
    vcpus: U8 | None = None
    memory_mib: U32 | None = None
    port_map: list[str] = field(default_factory=list)
    probe: Probe = field(default_factory=Probe)
    metadata: dict[str, str] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)
    fence: bool = False
    max_surge: Count = 1
    registration: str = "box"
    start_timeout: Interval = 60.0
    deregister_delay: Seconds = 1.0
    drain_timeout: Seconds = 30.0
    stop_grace: Seconds = 10.0

    def __post_init__(self) -> None:
        if not self.command and not self.image:
            raise ValueError("`command` is missing: give a command, or an image that has one")
        if self.registration not in ("box", "self"):
            raise ValueError(f'registration = {self.registration!r} must be "box" or "self"')
        try:
            check_metadata(self.metadata)
        except ProtocolError as exc:
            raise ValueError(f"metadata: {exc.problem}") from exc


class BoxConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[box]``: this host. `ports` is the range from which instances get theirs.

    `on_exit` says what becomes of the instances when the Box stops: ``leave`` them running for
    its next life (what `box` does unless told otherwise), or ``drain`` them (what `up` does).
    `engine` is what makes the containers of the runtime ``oci``: a known name or a path, and
    `isolation` how, where the engine leaves a choice (``sandbox`` with a3s-box; "" is its default,
    a MicroVM).
    `allow_images` are patterns (see bridge.images) of the images that requests may name.
    """

    name: str = ""
    address: str = "127.0.0.1"
    max_instances: Annotated[int, Meta(ge=1, le=100_000)] = 20
    data_dir: str = "data"
    ports: str = "20000-21999"
    runtime: str = "process"
    engine: str = "podman"
    isolation: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    allow_images: Annotated[list[str], Meta(max_length=MAX_PATTERNS)] = field(default_factory=list)
    metrics: str = ""
    on_exit: str = ""

    def __post_init__(self) -> None:
        if self.on_exit not in ("", "leave", "drain"):
            raise ValueError(f'on_exit = {self.on_exit!r} must be "leave" or "drain"')
        if self.runtime not in ("process", "oci"):
            raise ValueError(f'runtime = {self.runtime!r} is not known: use "process" or "oci"')
        if self.engine not in ENGINES and "/" not in self.engine:
            raise ValueError(
                f"engine = {self.engine!r} is not known: use {', '.join(ENGINES)}, or a path"
            )
        if self.isolation not in ("", "sandbox"):
            raise ValueError(f'isolation = {self.isolation!r} must be "sandbox", or left out')
        if len(self.port_range) < self.max_instances:
            raise ValueError(
                f"ports = {self.ports!r} holds {len(self.port_range)} ports, "
                f"fewer than max_instances = {self.max_instances}"
            )
        for pattern in self.allow_images:
            check_pattern(pattern)
        if self.allow_images and self.runtime == "process":
            raise ValueError('allow_images needs a runtime that runs images: runtime = "oci"')
        match = re.fullmatch(r".+:(\d{1,5})", self.metrics)
        if self.metrics and (match is None or int(match[1]) > 65535):
            raise ValueError(f'metrics = {self.metrics!r} must be "host:port"')

    @property
    def port_range(self) -> range:
        """The ports of `ports`; raises ValueError if it is not ``first-last``."""
        match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", self.ports)
        first, last = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= first <= last <= 65535:
            raise ValueError(f'ports = {self.ports!r} must be "first-last" within 1 to 65535')
        return range(first, last + 1)


class NatsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[nats]``: the connection, under the names that NATS users know, and the fleet's names.

    `url` may list several servers, separated by commas. `reply_prefixes` are inboxes beside
    `_INBOX.` and `_R_.` to which a Box may reply. `replicas` is how many servers keep each
    stream and bucket.
    """

    url: str = DEFAULT_URL
    context: str = ""
    user: str = ""
    password: str = ""
    token: str = ""
    creds: str = ""
    nkey: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    tls_first: bool = False
    inbox_prefix: str = "_INBOX"
    domain: str = ""
    prefix: str = DEFAULT_PREFIX
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    reply_prefixes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not is_name(self.prefix):
            raise ValueError(f"prefix = {self.prefix!r} is not a name of a-z, 0-9 and '-'")
        if not self.urls or not all(map(_is_url, self.urls)):
            raise ValueError(
                f"url = {without_secret(self.url)!r} is not a NATS URL: write it as "
                "nats://host:4222, tls://… or wss://…, several separated by commas"
            )
        if _SUBJECT.fullmatch(self.inbox_prefix) is None:
            raise ValueError(
                f"inbox_prefix = {self.inbox_prefix!r} is not a subject like _INBOX.me"
            )

    @property
    def urls(self) -> list[str]:
        return [url.strip() for url in self.url.split(",") if url.strip()]

    @property
    def subjects(self) -> Subjects:
        return Subjects(prefix=self.prefix)


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        known = parts.scheme in ("nats", "tls", "ws", "wss")
        return known and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, or half an IPv6 address
        return False


class Timing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[timing]``: the protocol's times, in seconds. Tests shorten them; leave them alone.

    All Boxes of a fleet must agree on `lease` and `registration_ttl` (WIRE: 10 s and 30 s). A
    `heartbeat` is a third of the lease at most: a renewal that is lost is given up after another
    one, or 1 s, and sent again a quarter of one later; that must be in time.
    `engine` is how long a container engine may take to answer what should be quick.
    """

    lease: Annotated[int, Meta(ge=2)] = 10
    heartbeat: Interval = 3.0
    sample: Interval = 1.0
    idle_samples: Count = 10
    registration_renew: Interval = 10.0
    registration_ttl: Count = 30
    decide_timeout: Interval = 2.0
    backoff_first: Interval = 1.0
    backoff_max: Interval = 60.0
    backoff_reset: Interval = 60.0
    engine: Interval = 10.0

    def __post_init__(self) -> None:
        if self.heartbeat > self.lease / 3:
            raise ValueError(
                f"heartbeat = {self.heartbeat:g} must be at most a third of lease = {self.lease}: "
                f"{self.lease / 3:.3g}"
            )


class Config(Struct, frozen=True, kw_only=True):
    """Everything a Box is told.

    `directory` is where relative paths of services start. `environ` is what instances inherit:
    the environment without the credentials of this program.
    """

    box: BoxConfig = field(default_factory=BoxConfig)
    nats: NatsConfig = field(default_factory=NatsConfig)
    timing: Timing = field(default_factory=Timing)
    services: dict[str, ServiceConfig] = field(default_factory=dict)
    directory: Path = field(default_factory=Path.cwd)
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def data_dir(self) -> Path:
        return Path(self.box.data_dir)


class InstanceConfig(Struct, frozen=True, kw_only=True):
    """What a Box hands an instance, by way of its environment; empty outside of any Box.

    `host` is the Box's name, `address` where gateways reach this host. `announced` says that the
    Box registers the instance, which then must not do so itself.
    """

    instance_id: str = ""
    service: str = ""
    host: str = ""
    address: str = ""
    port: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    registered_by_box: bool = False


class NotifyConfig(Struct, frozen=True, kw_only=True):
    """Where the service manager listens, "" if none does, and within how many seconds it must hear
    from this process again and again, 0 if it need not.
    """

    address: str = ""
    watchdog: float = 0.0


class LogConfig(Struct, frozen=True, kw_only=True):
    """What to log, from which level on, and how: ``text`` or ``json``."""

    level: str = "info"
    style: str = "text"
