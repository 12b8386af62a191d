"""The plan of a directory of users: the hosts, and the NATS servers of a fleet. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct, field

from bridge.auth.roles import Role, check_member
from bridge.errors import ConfigError
from bridge.nats_url import parse_urls
from bridge.subjects import check_name

USERS: Final = "users.json"
KEYS: Final = "keys.json"
SERVER_CONFIG: Final = "nats-server.conf"
LEAF_PORT: Final = 7422
RESERVED: Final = ("users", "keys", "accounts", "leaf-accounts", "nats-server")
"""What no user may be called: the names of other files."""

_DEFAULT_HOST: Final = "127.0.0.1"
_CLIENT_PORT: Final = 4222
_FIRST: Final = (Role.GATEWAY, Role.CONSUMER, Role.RELAY, Role.OPERATOR)
_SERVER: Final = re.compile(r"([^=]+)=([\w.-]+|\[[0-9A-Fa-f:]+\]):([1-9]\d{0,4})")


class Site(Struct, frozen=True, kw_only=True):
    """What `auth init` makes: the users, and the configuration of the servers.

    `servers` has the ``host:port`` for routes of each server of a cluster; it is empty for a single
    server. `leaves` are leaf nodes, which connect to `hubs`.
    """

    prefix: str
    url: str
    hosts: list[str] = []
    runners: list[str] = []
    servers: Mapping[str, str] = field(default_factory=dict)
    leaves: list[str] = []
    hubs: list[str] = []
    operator: bool = False

    @property
    def server_files(self) -> list[str]:
        """The configurations of the servers of the fleet, without those of leaf nodes."""
        return [f"{name}.conf" for name in self.servers] or [SERVER_CONFIG]

    def members(self) -> list[tuple[Role, str]]:
        """The role and the name of each user. Raises NameRefused, and ConfigError for a name that
        another user or file has.
        """
        wanted = [(Role.BOX, host) for host in dict.fromkeys(self.hosts)]
        wanted += [(Role.RUNNER, host) for host in dict.fromkeys(self.runners)]
        wanted += [(Role.LEAF, leaf) for leaf in dict.fromkeys(self.leaves)]
        taken = {*map(str, _FIRST), *RESERVED, *self.servers}
        for role, name in wanted:
            check_member(role, name)
            if name in taken:
                what = "a host" if role in (Role.BOX, Role.RUNNER) else f"a {role}"
                why = f"cannot be {what}'s name: another user or file has it"
                raise ConfigError(name, why)
            taken.add(name)
        return wanted + [(role, str(role)) for role in _FIRST]


def plan_site(
    *,
    prefix: str,
    url: str | None = None,
    hosts: list[str] | None = None,
    runners: list[str] | None = None,
    cluster: str = "",
    leaves: list[str] | None = None,
    operator: bool = False,
) -> Site:
    """The site with these hosts, servers and leaf nodes. Raises ConfigError and NameRefused."""
    servers = _servers(cluster)
    addresses = [address.rpartition(":")[0] for address in servers.values()] or [_DEFAULT_HOST]
    if url is None:
        url = ",".join(f"nats://{address}:{_CLIENT_PORT}" for address in addresses)
    try:
        urls = [urlsplit(server.url) for server in parse_urls(url)]
    except ValueError as exc:
        raise ConfigError("--server", str(exc)) from exc
    hubs = [f"nats-leaf://{_host(server.hostname or _DEFAULT_HOST)}:{LEAF_PORT}" for server in urls]
    return Site(
        prefix=prefix,
        url=url,
        hosts=hosts or [],
        runners=runners or [],
        servers=servers,
        leaves=leaves or [],
        hubs=hubs if leaves else [],
        operator=operator,
    )


def names(text: str) -> list[str]:
    """The names in `text`, which are separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _servers(cluster: str) -> dict[str, str]:
    servers: dict[str, str] = {}
    for given in names(cluster):
        match = _SERVER.fullmatch(given)
        if match is None or int(match[3]) > 65535:
            raise ConfigError("--cluster", f"{given!r} must be NAME=HOST:PORT")
        name = check_name("server", match[1])
        if name in servers or name in RESERVED:
            raise ConfigError("--cluster", f"{name} is given twice, or is the name of a file")
        servers[name] = f"{match[2]}:{match[3]}"
    return servers


def _host(name: str) -> str:
    return f"[{name}]" if ":" in name else name
