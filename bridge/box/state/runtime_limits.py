"""What each runtime can honour of a ScaleConfig. Pure.

A value that a runtime cannot honour is refused in the reply, never ignored. Any Box must be able to
refuse for any host, so these rules use only what the records of hosts contain.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Final

from bridge.protocol import ScaleConfig

_PORTS: Final = re.compile(r"(0|[1-9][0-9]{0,4}):([1-9][0-9]{0,4})")
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,511}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_LEAST_MEMORY: Final = 6  # MiB: docker takes no less
_LONGEST_VALUE: Final = 32_768  # bytes: docker reads lines of 64 KiB at most from its env file
_MOST_PORTS: Final = 16
_GUEST_PORT: Final = 8080  # inside a container, unless port_map names another

PORT: Final = "PORT"
"""The variable that a Box sets by itself; a request may repeat what it sets."""
_REQUESTED: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# Variables by which a loader, a library, a shell or an interpreter runs code that the sender chose,
# or by which an instance sends its credentials or its traffic to a server that the sender chose.
_NEVER_REQUESTED: Final = re.compile(
    r"(LD|DYLD|GCONV|GLIBC|MALLOC|NATS|BOX|XDG|OPENSSL|DOCKER|NPM|GEM|BUNDLE|LUA|PHP|MONO|GUILE)_.*"
    r"|(BASH|PYTHON|PERL|RUBY|DOTNET|CORECLR|COMPlus|JAVA|LESS|TERMINFO).*|(COR|ERL|ELIXIR|PIP)_.*"
    r"|_JAVA_.*|JDK_.*|CLASSPATH|NODE_(OPTIONS|PATH|EXTRA_CA_CERTS|TLS_.*|REPL_.*)|TCLLIBPATH"
    r"|PATH|HOME|SHELL|USER|LOGNAME|ENV|IFS|CDPATH|FPATH|ZDOTDIR|SHELLOPTS|PS[0-4]|PROMPT_COMMAND"
    r"|GETCONF_DIR|LOCPATH|NLSPATH|TZDIR|HOSTALIASES|LOCALDOMAIN|RES_OPTIONS|R_(HOME|LIBS|PROFILE).*"
    r"|EDITOR|VISUAL|PAGER|MANPAGER|BROWSER|SSL_CERT_.*|SSLKEYLOGFILE|(CURL|REQUESTS)_CA_BUNDLE"
    r"|GIT_(SSH|CONFIG|EXEC|EXTERNAL|PROXY|PAGER|EDITOR).*|SSH_.*|.*_ASKPASS|KUBECONFIG|CONTAINER_HOST"
    r"|LISTEN_(FDS|PID|FDNAMES)|NOTIFY_SOCKET|WATCHDOG_.*|(?i:(.*_)?proxy)",
    re.DOTALL,
)

NO_LACKS: Final[Mapping[str, str]] = {}


def config_blocker(
    runtime: str, config: ScaleConfig, *, cpus: int, lacks: Mapping[str, str] = NO_LACKS
) -> str | None:
    """Why `runtime` on a host with `cpus` processors cannot honour `config`; None if it can.

    `lacks` has, by field, the reason why the engine behind the runtime cannot honour it there.
    """
    check = _CHECKS.get(runtime)
    if check is None:
        return f"runtime {runtime!r} is not known to this Box"
    return _limits(config, cpus) or check(config, lacks)


def request_blocker(config: ScaleConfig) -> str | None:
    """Why no request may have `config`, although a service's own configuration may."""
    for key in config.env:
        if not _REQUESTED.fullmatch(key):
            return f"env {key[:40]!r} is not a name of letters, digits and '_'"
        if key.startswith("BOX_"):
            return f"env {key[:40]} is set by the Box"
        if key != PORT and is_never_requested(key):
            return (
                f"env {key[:40]} may never be set by a request, because it can make the instance "
                "run other code or connect elsewhere: set it in the service's own env"
            )
    return None


def is_never_requested(name: str) -> bool:
    """Whether no request may set the variable `name`, also if it is listed."""
    return _NEVER_REQUESTED.fullmatch(name) is not None


def unlisted_blocker(
    config: ScaleConfig,
    *,
    names: Collection[str] | None,
    ports: tuple[int, int] | None,
    own_port: int,
) -> str | None:
    """Why a host does not let a request have `config`. `names` are the variables, and `ports` the
    first and the last fixed host port, that requests may set there; None of an older Box, which
    has no such rule. `own_port` is the one that the service itself is configured with.
    """
    for key in config.env:
        if names is not None and key != PORT and key not in names:
            return (
                f"env {key[:40]} may not be set by a request: list it in request_env of the service"
            )
    for port, _ in map(port_pair, config.port_map):
        if ports is not None and port not in (0, own_port) and not ports[0] <= port <= ports[1]:
            return (
                f"port_map: the host port {port} is not one of {ports[0]}-{ports[1]}, which "
                "requests may fix ([box] request_ports)"
            )
    return None


def port_pair(entry: str) -> tuple[int, int]:
    """The host's and the guest's port of ``host:guest``; (0, 0) if `entry` has another form."""
    match = _PORTS.fullmatch(entry)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def fixed_port(port_map: list[str]) -> int:
    """The first host port that `port_map` fixes; 0 where it fixes none."""
    return next((host for host, _ in map(port_pair, port_map) if host), 0)


def guest_port(port_map: list[str]) -> int:
    """The port inside a container at which the instance serves."""
    return port_pair(port_map[0])[1] if port_map else _GUEST_PORT


def _limits(config: ScaleConfig, cpus: int) -> str | None:
    if config.vcpus is not None and not 1 <= config.vcpus <= cpus:
        return f"vcpus must be 1 to {cpus}, the processors of the host, not {config.vcpus}"
    if config.memory_mib is not None and config.memory_mib < 1:
        return "memory_mib must be at least 1"
    return None


def _process(config: ScaleConfig, lacks: Mapping[str, str]) -> str | None:
    if config.image:
        return (
            f'image {config.image!r} cannot be honoured: `image` needs `[box] runtime = "oci"`; '
            "this host runs the configured command"
        )
    if len(config.port_map) > 1:
        return "port_map may have one entry in the process runtime: an instance has one port"
    port = str(fixed_port(config.port_map) or "")
    cure = 'for a fixed port use port_map ["8080:80"], which makes PORT 8080'
    return _ports(config.port_map) or _env(config, port, cure)


def _oci(config: ScaleConfig, lacks: Mapping[str, str]) -> str | None:
    if config.image and not _IMAGE.fullmatch(config.image):
        return f"image {config.image[:80]!r} is not a reference like registry/name:tag"
    if config.memory_mib is not None and config.memory_mib < _LEAST_MEMORY:
        return f"memory_mib must be at least {_LEAST_MEMORY} in a container"
    for field in ("vcpus", "memory_mib"):
        if getattr(config, field) is not None and field in lacks:
            return f"{field} cannot be honoured: {lacks[field]}"
    if len(config.port_map) > _MOST_PORTS:
        return f"port_map may have {_MOST_PORTS} entries"
    port = str(guest_port(config.port_map))
    problem = _ports(config.port_map) or _env(config, port, 'port_map ["0:80"] makes PORT 80')
    return problem or _carried(config.env, lacks)


def _ports(port_map: list[str]) -> str | None:
    for entry in port_map:
        host, guest = port_pair(entry)
        if host > 65535 or not 1 <= guest <= 65535:
            return (
                f'port_map {entry[:40]!r} must be "host:guest", ports from 1 to 65535 (host 0: any)'
            )
    if len(set(map(port_pair, port_map))) < len(port_map):
        return "port_map names the same ports twice"
    return None


def _env(config: ScaleConfig, port: str, cure: str) -> str | None:
    for key, value in config.env.items():
        if not key or "=" in key or "\0" in key + value or not _is_unicode(key + value):
            return f"env {key[:40]!r} cannot be an environment variable"
        if key.startswith("BOX_"):
            return f"env {key} is set by the Box"
        if key == PORT and value != port:
            return f"env PORT is set by the Box: {cure}"
    return None


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can write `text`: half of a surrogate pair is no letter."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _carried(env: Mapping[str, str], lacks: Mapping[str, str]) -> str | None:
    """Why a file of ``KEY=value`` lines, which other users cannot read, cannot carry `env`."""
    for key, value in env.items():
        if not _VARIABLE.fullmatch(key):
            return f"env {key[:40]!r} is not a name that an environment file can carry"
        if "\n" in value or "\r" in value:
            return (
                f"env {key} has several lines, which an environment file cannot carry: encode it "
                "(base64, JSON), or put it into the image"
            )
        if len(value.encode(errors="replace")) > _LONGEST_VALUE:
            return f"env {key} is longer than {_LONGEST_VALUE} bytes"
        if value != value.strip() and "env" in lacks:
            return f"env {key} cannot be honoured: {lacks['env']}"
    return None


_CHECKS: Final[dict[str, Callable[[ScaleConfig, Mapping[str, str]], str | None]]] = {
    "process": _process,
    "oci": _oci,
}
