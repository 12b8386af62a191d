"""The settings of a Box as frozen Structs: one for each table of its configuration file.

`bridge.config` reads the values. The docstring under a field is that key's text in the
configuration reference (docs/generate/settings.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta, Struct, field

from bridge.errors import ProtocolError
from bridge.http_exchange import HEADER_NAME
from bridge.images import MAX_PATTERNS, check_pattern
from bridge.nats_url import parse_urls
from bridge.protocol import U8, U32
from bridge.subjects import DEFAULT_PREFIX, Subjects, is_name
from bridge.validation import address_blocker, check_metadata

EVENTS_MAX_BYTES: Final = 2**30
DEFAULT_URL: Final = "nats://127.0.0.1:4222"
STOP_SIGNALS: Final = tuple(
    f"SIG{name}" for name in ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "WINCH")
)
ENGINES: Final = ("podman", "docker", "nerdctl", "a3s-box")
_SUBJECT: Final = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")

_UNITS: Final = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE: Final = re.compile(r"([1-9][0-9]{0,5}) ?(KiB|MiB|GiB)")
_TARGET: Final = re.compile(r"/[!-~]*")
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?")
_PROBE_HEADERS: Final = ("host", "connection", "content-length", "transfer-encoding")

Seconds = Annotated[float, Meta(ge=0)]
Interval = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class Probe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a Box checks that an instance is ready, and later that it is healthy.

    Before Ready the Box repeats the probe until it passes. A pass counts only while the listening
    socket belongs to the instance. After Ready the Box repeats it every `interval` seconds.
    """

    http: str | None = None
    """A path, sent as it is given. The probe passes if the response's status is below 400."""
    https: str | None = None
    """The same over TLS. The certificate is not checked, unless `verify` is set."""
    host: str = ""
    """The `Host` header of an HTTP probe, and the server name for TLS. The default is the address
    that the probe connects to.
    """
    headers: dict[str, str] = field(default_factory=dict)
    """More headers of an HTTP probe."""
    verify: bool = False
    """Check the certificate of an `https` probe against the system's authorities and `host`."""
    tcp: bool = False
    """The probe passes if a TCP connection is accepted. This is the default without `http`."""
    interval: Interval = 5.0
    """Seconds between two probes after Ready."""
    timeout: Interval = 2.0
    """Seconds after which a probe without an answer has failed."""
    failures: Count = 3
    """Consecutive failures that make the instance unhealthy. One pass makes it healthy again."""

    def __post_init__(self) -> None:
        if (self.http is not None) + (self.https is not None) + self.tcp > 1:
            raise ValueError('choose one of http = "/path", https = "/path" and tcp = true')
        for key, path in (("http", self.http), ("https", self.https)):
            if path is not None and _TARGET.fullmatch(path) is None:
                raise ValueError(
                    f"{key} = {path!r} must be a path that starts with '/'; "
                    "percent-encode spaces and letters beyond ASCII"
                )
        if self.path is None and (self.host or self.headers):
            raise ValueError('host and headers need http = "/path" or https = "/path"')
        if self.verify and self.https is None:
            raise ValueError('verify needs https = "/path"')
        if self.host and _HOST.fullmatch(self.host) is None:
            raise ValueError(f'host = {self.host!r} must be a name like "shop.example.com"')
        for name, value in self.headers.items():
            if HEADER_NAME.fullmatch(name) is None or name.lower() in _PROBE_HEADERS:
                raise ValueError(f"headers: {name!r} cannot be set; use `host` for Host")
            if not (value.isascii() and value.isprintable()):
                raise ValueError(f"headers: the value of {name} is not printable ASCII")

    @property
    def path(self) -> str | None:
        """The path of an HTTP probe, None for a TCP probe."""
        return self.http if self.https is None else self.https


class ServiceConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[services.<name>]``: how the Box runs one instance of a service.

    A request's config overrides `image`, `vcpus`, `memory_mib`, `env` and `port_map`.
    """

    command: list[str] = field(default_factory=list)
    """The program and its arguments. `{port}` becomes the instance's port. Required without
    `image`; with an image it replaces the image's command.
    """
    entrypoint: list[str] = field(default_factory=list)
    """Replaces the image's entrypoint. Only for the `oci` runtime."""
    image: str = ""
    """The image of the instance, pulled if the host does not have it. Only for the `oci` runtime.
    """
    cwd: str = ""
    """The working directory; the file's directory by default. The `oci` runtime refuses it."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of the instance. The `process` runtime adds them to the Box's own
    environment without `NATS_…`, `BOX_…` and the service manager's variables.
    """
    vcpus: U8 | None = None
    """Processors of each instance."""
    memory_mib: U32 | None = None
    """Memory limit of each instance, in MiB."""
    port_map: list[str] = field(default_factory=list)
    """Ports as `"host:guest"`. Host port 0 means any free port. A fixed host port limits the
    service to one instance per host.
    """
    probe: Probe = field(default_factory=Probe)
    """The readiness and health check, a table: see the keys of `probe`."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Added to each registration; 16 KiB at most, keys and values together."""
    needs: dict[str, str] = field(default_factory=dict)
    """Labels that a host must have, with these values. Other hosts do not count in the service's
    capacity.
    """
    fence: bool = False
    """End the instances before the lease of a host that is cut off or frozen expires. Replacements
    then never run beside them. The `oci` runtime refuses it. It needs `/proc/uptime`, and a lease
    that is 2 s longer than the heartbeat.
    """
    max_surge: Count = 1
    """Extra instances allowed at one time while instances are replaced: for a changed config, a
    drain or a rebalance. Where hosts differ, the smallest value counts.
    """
    registration: str = "box"
    """The publisher of the registrations: `box` (the Box) or `self` (the instance)."""
    log_size: str = "4MiB"
    """The bound of each log of an instance, stdout and stderr: a number with `KiB`, `MiB` or `GiB`.
    The Box copies the end of a longer log to `stdout.log.1`, and empties the log. The `oci` runtime
    leaves the logs of running containers to its engine.
    """
    log_files: Annotated[int, Meta(ge=1, le=100)] = 2
    """How many files each log has, the current one included; 1 keeps no older lines."""
    start_timeout: Interval = 60.0
    """Seconds from Booting to Ready, after which the instance has failed."""
    deregister_delay: Seconds = 1.0
    """Seconds for which a draining instance still serves, so that gateways can remove its route."""
    drain_timeout: Seconds = 30.0
    """Seconds that a draining instance has to finish its requests."""
    stop_signal: str = ""
    """The signal that asks an instance to end: `SIGTERM`, `SIGINT`, `SIGQUIT`, `SIGHUP`, `SIGUSR1`,
    `SIGUSR2` or `SIGWINCH`. The default is `SIGTERM`, or what the image names. The engine `a3s-box`
    refuses it.
    """
    stop_scope: str = ""
    """Which processes of an instance get the stop signal: `main` (the default), the program of
    `command` alone, so that it can let its workers finish; or `group`, every process at once. What
    is left when the main process has ended gets the signal then, and SIGKILL at the end of
    `stop_grace`. The `oci` runtime refuses it: engines signal the main process.
    """
    stop_grace: Seconds = 10.0
    """Seconds from the stop signal to SIGKILL."""

    def __post_init__(self) -> None:
        if not self.command and not self.image:
            raise ValueError("`command` is missing: give a command, or an image that has one")
        if self.registration not in ("box", "self"):
            raise ValueError(f'registration = {self.registration!r} must be "box" or "self"')
        if self.stop_signal not in ("", *STOP_SIGNALS):
            raise ValueError(
                f"stop_signal = {self.stop_signal!r} must be one of {', '.join(STOP_SIGNALS)}"
                + ("; for SIGKILL set stop_grace = 0" if "KILL" in self.stop_signal else "")
            )
        if self.stop_scope not in ("", "main", "group"):
            raise ValueError(f'stop_scope = {self.stop_scope!r} must be "main" or "group"')
        if _SIZE.fullmatch(self.log_size) is None:
            raise ValueError(f'log_size = {self.log_size!r} must be like "512KiB" or "10MiB"')
        try:
            check_metadata(self.metadata)
        except ProtocolError as exc:
            raise ValueError(f"metadata: {exc.problem}") from exc

    @property
    def log_bytes(self) -> int:
        """`log_size` in bytes."""
        match = _SIZE.fullmatch(self.log_size)
        assert match is not None, "checked when it was read"
        return int(match[1]) * _UNITS[match[2]]


class BoxConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[box]``: this host."""

    name: str = ""
    """The host's name on the bus: 1 to 63 of `a-z`, `0-9` and `-`. The default is the first label
    of the machine's host name, in lower case. Two live Boxes cannot have one name.
    """
    address: str = "127.0.0.1"
    """The address, or the name, at which gateways reach the instances of this host, without a port
    and brackets. `0.0.0.0` and `::` are refused. The Box warns about a loopback address if its NATS
    server is not local.
    """
    max_instances: Annotated[int, Meta(ge=1, le=100_000)] = 20
    """The most instances on this host, over all services."""
    data_dir: str = "data"
    """The directory for the journal, the logs, the lock and the id of the host. A copy of it, or a
    clone of the machine, is refused while the original lives.
    """
    ports: str = "20000-21999"
    """The port range for process instances. The Box takes the next free port after the last one."""
    runtime: str = "process"
    """`process` runs programs; `oci` runs containers and MicroVMs."""
    engine: str = "podman"
    """The container engine of the `oci` runtime: `podman`, `docker`, `nerdctl`, `a3s-box`, or a
    path.
    """
    isolation: str = ""
    """`sandbox` selects a3s-box's shared-kernel sandbox. The default is a MicroVM."""
    labels: dict[str, str] = field(default_factory=dict)
    """Facts about the host, as `{ zone = "a", disk = "fast" }`. Services can need them."""
    allow_images: Annotated[list[str], Meta(max_length=MAX_PATTERNS)] = field(default_factory=list)
    """Patterns of the images that requests may name. Without it a request may name only the image
    that the service is configured with. Only for the `oci` runtime.
    """
    metrics: str = ""
    """`host:port` at which the Box serves `/metrics` for Prometheus. Off by default."""
    on_exit: str = ""
    """What the Box does with the instances when it is stopped: `leave` them running, or `drain`
    them. A Box that ends because of an error leaves them running. The default is `leave` for
    `box-bridge box` and `drain` for `box-bridge up`.
    """

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
        if problem := address_blocker(self.address):
            raise ValueError(f"address = {self.address!r} {problem}")
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
    """``[nats]``: the connection, under the names that NATS users know, and the fleet's names."""

    url: str = DEFAULT_URL
    """One server, or several separated by commas. A `tls://` URL is refused before anything is sent
    if the server does not require TLS. A user and password in it are percent-encoded; servers of
    the cluster that the client discovers get those of the first URL that has them.
    """
    context: str = ""
    """A context of the `nats` CLI. Its values rank below the other values of the layer that names
    it.
    """
    user: str = ""
    """The user name."""
    password: str = ""
    """The user's password."""
    token: str = ""
    """An authentication token."""
    creds: str = ""
    """A credentials file. It needs the extra `nkeys`."""
    nkey: str = ""
    """A file with an nkey seed. It needs the extra `nkeys`."""
    ca: str = ""
    """The file with the certificate authority for TLS."""
    cert: str = ""
    """The client certificate file for TLS."""
    key: str = ""
    """The client key file for TLS."""
    tls_first: bool = False
    """Start TLS before the server's first line."""
    inbox_prefix: str = "_INBOX"
    """The subject prefix of the replies to this program."""
    domain: str = ""
    """The JetStream domain."""
    prefix: str = DEFAULT_PREFIX
    """The first token of every subject. Two prefixes are two fleets."""
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    """How many servers of a cluster keep each stream and bucket."""
    events_max_bytes: Count = EVENTS_MAX_BYTES
    """The size of the stream of events, in bytes, when a Box creates it; the server reserves it. A
    full stream takes no more events until old ones expire: the Boxes keep them and publish them
    later. A server with less room gets a smaller stream.
    """
    reply_prefixes: list[str] = field(default_factory=list)
    """Subject prefixes beside `_INBOX.` and `_R_.` to which this Box may reply."""

    def __post_init__(self) -> None:
        if not is_name(self.prefix):
            raise ValueError(f"prefix = {self.prefix!r} is not a name of a-z, 0-9 and '-'")
        parse_urls(self.url)
        if _SUBJECT.fullmatch(self.inbox_prefix) is None:
            raise ValueError(
                f"inbox_prefix = {self.inbox_prefix!r} is not a subject like _INBOX.me"
            )

    @property
    def urls(self) -> list[str]:
        """The URLs of the servers, without credentials."""
        return [server.url for server in parse_urls(self.url)]

    @property
    def subjects(self) -> Subjects:
        return Subjects(prefix=self.prefix)


class Timing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[timing]``: the protocol's times, in seconds. They are for tests: keep the defaults.

    All Boxes of a fleet must agree on `lease` and `registration_ttl`.
    """

    lease: Annotated[int, Meta(ge=2)] = 10
    """A host without a renewal for this long is dead."""
    heartbeat: Interval = 3.0
    """Seconds between two renewals of the lease; a third of the lease at most, so that one renewal
    may be lost.
    """
    # A lost renewal times out after another heartbeat, or 1 s, and is sent again a quarter later.
    sample: Interval = 1.0
    """Seconds between two measurements of the instances' load."""
    idle_samples: Count = 10
    """Consecutive samples without a request in flight that turn Busy into Ready."""
    registration_renew: Interval = 10.0
    """Seconds between two registrations of an instance."""
    registration_ttl: Count = 30
    """A registration that was not repeated for this long has expired."""
    decide_timeout: Interval = 2.0
    """How long a Box retries a decision after write conflicts before it answers `Busy`."""
    backoff_first: Interval = 1.0
    """The pause before the first replacement of a failed instance."""
    backoff_max: Interval = 60.0
    """The longest such pause."""
    backoff_reset: Interval = 60.0
    """An instance that served for this long has recovered: its slot's failures no longer count."""
    engine: Interval = 10.0
    """How long a container engine may take for a quick answer."""

    def __post_init__(self) -> None:
        if self.heartbeat > self.lease / 3:
            raise ValueError(
                f"heartbeat = {self.heartbeat:g} must be at most a third of lease = {self.lease}: "
                f"{self.lease / 3:.3g}"
            )


class Config(Struct, frozen=True, kw_only=True):
    """The whole configuration of a Box.

    Relative paths of services start at `directory`. Instances inherit `environ`: the environment
    without the credentials of this program.
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
