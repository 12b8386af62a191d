"""``[services.<name>]`` and its `probe`."""

from __future__ import annotations

import re
from typing import Annotated, Final

from msgspec import Meta, Struct, field

from bridge.errors import ProtocolError
from bridge.http_exchange import HEADER_NAME
from bridge.protocol import U8, U32
from bridge.settings.secret import Secret
from bridge.settings.units import Count, Interval, Seconds, VariableNames
from bridge.validation import check_metadata

STOP_SIGNALS: Final = tuple(
    f"SIG{name}" for name in ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "WINCH")
)
_UNITS: Final = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE: Final = re.compile(r"([1-9][0-9]{0,5}) ?(KiB|MiB|GiB)")
_TARGET: Final = re.compile(r"/[!-~]*")
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?")
_PROBE_HEADERS: Final = ("host", "connection", "content-length", "transfer-encoding")


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
    user: str = ""
    """The user that the instances run as, with its groups and its `HOME`; the Box's own by default.
    The Box must be root, or have CAP_SETUID, CAP_SETGID, CAP_KILL and CAP_CHOWN. The `oci` runtime
    refuses it: an image has a user.
    """
    cwd: str = ""
    """The working directory; the file's directory by default. The `oci` runtime refuses it."""
    env: dict[str, str | Secret] = field(default_factory=dict)
    """Environment variables of the instance. The `process` runtime adds them to those that it takes
    from the Box's own environment: see `inherit_env` of `[box]`. A value is a text, or a secret:
    `{ file = "/etc/box-bridge/token" }`, or `{ credential = "token" }` of systemd. The Box reads a
    secret at each start of an instance, and keeps it nowhere.
    """
    request_env: VariableNames = field(default_factory=list)
    """Names of the environment variables that requests may set, as `["LOG_LEVEL"]`. By default a
    request may set none. Variables of loaders, shells and interpreters, `PATH`, `HOME`, `NATS_…`
    and proxies are refused also if they are listed.
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
    The Box copies the end of a longer log to `stdout.log.1`, and empties the log. While a
    container runs, podman keeps its log within `log_size`, and other engines follow their own
    configuration.
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
