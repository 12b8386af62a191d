"""The accounts of a fleet as signed JWTs, for servers in operator mode. Pure.

The operator signs the accounts: NATS JWT version 2. Each user is signed by a key of its own, which
is thrown away. The account's JWT has the public half of that key, with the user's permissions as a
scope. So a credentials file never changes with the permissions, and the user is revoked when its
key leaves the account.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from bridge.auth.accounts import FLEET, HUB_DOMAIN, Account, Export, Import, Member, User, in_domain
from bridge.auth.keys import KeyKind, KeyPair, create_key, sign
from bridge.auth.roles import API, Role

Claims = dict[str, Any]

SYSTEM: Final = "SYS"
"""The server's own account."""

_HEADER: Final[Claims] = {"typ": "JWT", "alg": "ed25519-nkey"}
_NO_LIMITS: Final = {"subs": -1, "data": -1, "payload": -1}


class SigningKeys(Struct, frozen=True, kw_only=True):
    """The secret keys of the operator and of each account, by name. An account keeps its key,
    because the imports of other accounts name the public half. `created` is in seconds of the
    epoch: a server that reloads takes no other JWT of the operator than the one it has.
    """

    created: int
    operator: KeyPair
    accounts: dict[str, KeyPair]


def create_keys(at: int) -> SigningKeys:
    """The keys of a new fleet. Raises ConfigError without the extra `nkeys`."""
    accounts = {SYSTEM: create_key(KeyKind.ACCOUNT)}
    return SigningKeys(created=at, operator=create_key(KeyKind.OPERATOR), accounts=accounts)


def with_accounts(keys: SigningKeys, names: Sequence[str]) -> SigningKeys:
    """`keys`, with a new key for each account of `names` that has none."""
    made = {name: create_key(KeyKind.ACCOUNT) for name in names if name not in keys.accounts}
    return replace(keys, accounts={**keys.accounts, **made})


def operator_conf(keys: SigningKeys, accounts: Sequence[Account], *, at: int) -> str:
    """The text of accounts.conf, issued at `at` seconds of the epoch. `keys` has all `accounts`."""
    operator: Claims = {
        "type": "operator",
        "version": 2,
        "system_account": keys.accounts[SYSTEM].public,
    }
    own = keys.operator.public
    lines = [
        "# Made by `box-bridge auth`, which rewrites this file: change nothing here.",
        f"operator: {_signed(keys.operator, own, 'box-bridge', operator, keys.created)}",
        f"system_account: {keys.accounts[SYSTEM].public}",
        "resolver: MEMORY",
        "resolver_preload: {",
    ]
    for account in (Account(name=SYSTEM, users=[]), *accounts):
        public = keys.accounts[account.name].public
        token = _signed(keys.operator, public, account.name, _account(keys, account), at)
        lines += [f"  # {account.name}", f"  {public}: {token}"]
    return "\n".join([*lines, "}", ""])


def creds(account: KeyPair, signer: KeyPair, member: Member, seed: str, *, at: int) -> str:
    """The text of the credentials file of `member`, whose secret is `seed`."""
    claims: Claims = {"type": "user", "version": 2, "issuer_account": account.public}
    token = _signed(signer, member.key, member.name, claims, at)
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def _account(keys: SigningKeys, account: Account) -> Claims:
    storage = -1 if account.name == FLEET and not account.remote_jetstream else 0
    limits = {
        **_NO_LIMITS,
        "imports": -1,
        "exports": -1,
        "wildcards": True,
        "conn": -1,
        "leaf": -1,
        "mem_storage": storage,
        "disk_storage": storage,
        "streams": storage,
        "consumer": storage,
    }
    domain = {f"{API}>": [{"subject": in_domain(f"{API}>", HUB_DOMAIN), "weight": 100}]}
    return {
        "type": "account",
        "version": 2,
        "mappings": domain if account.remote_jetstream else {},
        "limits": limits,
        "default_permissions": {"pub": {}, "sub": {}},
        "signing_keys": list(map(_scope, account.users)),
        "exports": list(map(_export, account.exports)),
        "imports": [_import(item, keys.accounts[FLEET].public) for item in account.imports],
    }


def _scope(user: User) -> Claims:
    member, rights = user.member, user.grants
    template: Claims = dict(_NO_LIMITS)
    if rights is not None:
        template["pub"] = {"allow": list(rights.publish), "deny": list(rights.deny)}
        template["sub"] = {"allow": list(rights.subscribe)}
    if member.role is Role.LEAF:
        template["allowed_connection_types"] = ["LEAFNODE"]
    role = f"{member.role} {member.name}"
    return {"kind": "user_scope", "key": member.signer, "role": role, "template": template}


def _export(export: Export) -> Claims:
    claims = {"name": export.subject, "subject": export.subject, "type": _kind(export)}
    return {**claims, "response_type": "Stream"} if export.several else claims


def _import(item: Import, source: str) -> Claims:
    claims: Claims = {
        "name": item.subject,
        "subject": item.subject,
        "account": source,
        "type": _kind(item),
        "share": item.share,
    }
    return {**claims, "local_subject": item.local} if item.service else claims


def _kind(item: Export | Import) -> str:
    return "service" if item.service else "stream"


def _signed(issuer: KeyPair, subject: str, name: str, claims: Claims, at: int) -> str:
    body = {"iat": at, "iss": issuer.public, "name": name, "sub": subject, "nats": claims}
    digest = hashlib.new("sha512_256", _compact(body)).digest()
    body = {"jti": base64.b32encode(digest).decode().rstrip("="), **body}
    text = f"{_encoded(_compact(_HEADER))}.{_encoded(_compact(body))}"
    return f"{text}.{_encoded(sign(issuer, text.encode()))}"


def _compact(value: Claims) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
