"""The server's configuration of a fleet: its accounts, and its place in a cluster. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

from bridge.auth.accounts import (
    FLEET,
    HUB_DOMAIN,
    Account,
    Export,
    Import,
    User,
    in_domain,
)
from bridge.auth.roles import API

_SERVER: Final = """\
# A nats-server for one fleet, made by `box-bridge auth init`. Change this file as your site needs:
# add TLS, `listen` and `store_dir`. `box-bridge auth` rewrites accounts.conf alone.
#
#   nats-server -c nats-server.conf -p 4222 -sd /var/lib/nats

jetstream {%(domain)s
    # An acknowledged message is on the disk. With the default, two minutes, a crash of the
    # machine loses acknowledged messages.
    sync_interval: always
}

# The server drops a frozen client within 7 s; requests then go to live Boxes only.
ping_interval: "2s"
ping_max: 2

include accounts.conf
"""

_HUB: Final = """
# The leaf nodes of the fleet connect here, each with its key.
leafnodes {{
    listen: "{listen}"
}}
"""

_LEAF: Final = """\
# A leaf node for one fleet, made by `box-bridge auth`. It holds a secret. It needs
# leaf-accounts.conf beside it. Programs connect to it as they would connect to the fleet's own
# servers. It has no JetStream: the streams stay where they are.
#
#   nats-server -c {name}.conf -p 4222

server_name: "{name}"
ping_interval: "2s"
ping_max: 2

leafnodes {{
    remotes: [ {{ urls: [{urls}], account: {account}, {credential} }} ]
}}

include leaf-accounts.conf
"""

_CLUSTER: Final = """
server_name: "{name}"
cluster {{
    name: "{cluster}"
    listen: "{listen}"
    # The secret of the routes. It is the same on every server of the cluster.
    authorization {{ user: route, password: "{secret}", timeout: 2 }}
    routes: [{routes}]
}}
"""


def server(*, leaf_listen: str = "") -> str:
    """The configuration of a single server. Leaf nodes connect at `leaf_listen`, if given."""
    if not leaf_listen:
        return _SERVER % {"domain": ""}
    domain = f"\n    domain: {HUB_DOMAIN} # leaf nodes send JetStream calls to it"
    return _SERVER % {"domain": domain} + _HUB.format(listen=leaf_listen)


def cluster_server(name: str, servers: Mapping[str, str], *, cluster: str, secret: str) -> str:
    """What the server `name` of a cluster has beside `server`. `servers` has the ``host:port`` for
    routes of each.
    """
    others = [address for other, address in servers.items() if other != name]
    routes = ", ".join(_quoted(f"nats-route://route:{secret}@{address}") for address in others)
    return _CLUSTER.format(
        name=name,
        cluster=cluster,
        listen=f"0.0.0.0:{servers[name].rpartition(':')[2]}",
        secret=secret,
        routes=routes,
    )


def leaf_server(name: str, urls: Iterable[str], *, account: str, seed: str = "") -> str:
    """The configuration of the leaf node `name`, which connects to `urls` with its `seed`, or with
    its credentials file in the working directory of the server.
    """
    credential = f"nkey: {seed}" if seed else f'credentials: "./{name}.creds"'
    return _LEAF.format(
        name=name,
        urls=", ".join(map(_quoted, urls)),
        account=account,
        credential=credential,
    )


def accounts_conf(accounts: Iterable[Account]) -> str:
    """The text of accounts.conf."""
    lines = [
        "# Made by `box-bridge auth`, which rewrites this file: change nothing here.",
        "accounts {",
    ]
    for account in accounts:
        lines += [f"  {account.name} {{"]
        lines += _jetstream(account)
        lines += _block("users", map(_user, account.users))
        lines += _block("exports", map(_export, account.exports)) if account.exports else []
        lines += _block("imports", map(_import, account.imports)) if account.imports else []
        lines += ["  }"]
    return "\n".join([*lines, "}", ""])


def _jetstream(account: Account) -> list[str]:
    if account.remote_jetstream:
        domain = in_domain(f"{API}>", HUB_DOMAIN)
        return [f"    mappings: {{ {_quoted(f'{API}>')}: {_quoted(domain)} }}"]
    return ["    jetstream: enabled"] if account.name == FLEET else []


def _user(user: User) -> str:
    member, rights = user.member, user.grants
    title = f"# {member.role} {member.name}"
    if rights is None:
        return f"{title}\n      {{ nkey: {member.key}, allowed_connection_types: [LEAFNODE] }}"
    publish = _list(rights.publish)
    if rights.deny:
        publish = f"{{ allow: {publish}, deny: {_list(rights.deny)} }}"
    body = f"        publish: {publish}\n        subscribe: {_list(rights.subscribe)}"
    return f"{title}\n      {{ nkey: {member.key}, permissions: {{\n{body}\n      }} }}"


def _list(subjects: Iterable[str]) -> str:
    return "[\n" + "".join(f"          {_quoted(item)}\n" for item in subjects) + "        ]"


def _export(export: Export) -> str:
    if not export.service:
        return f"{{ stream: {_quoted(export.subject)} }}"
    response = ", response: stream" if export.several else ""
    return f"{{ service: {_quoted(export.subject)}{response} }}"


def _import(item: Import) -> str:
    source = f"{{ account: {FLEET}, subject: {_quoted(item.subject)} }}"
    if not item.service:
        return f"{{ stream: {source} }}"
    to = f", to: {_quoted(item.local)}" if item.local != item.subject else ""
    share = ", share: true" if item.share else ""
    return f"{{ service: {source}{to}{share} }}"


def _block(key: str, lines: Iterable[str]) -> list[str]:
    return [f"    {key}: [", *(f"      {line}" for line in lines), "    ]"]


def _quoted(subject: str) -> str:
    return json.dumps(subject)
