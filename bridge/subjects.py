"""Every subject, stream, bucket and header name, and the rule for names.

Service names, instance ids and host names become subject tokens. They are checked first, because a
dot, a wildcard or an empty token would address other messages. One prefix starts all of them, so
that two fleets can share an account.
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from bridge.errors import ConfigError, NameRefused

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,8}")
_SEQUENCE: Final = re.compile(r"[0-9]{1,15}")
_TRACE: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_INSTANCE: Final = re.compile(rf"[^.]*\.([^.]*)\.({_NAME.pattern})\.({_NAME.pattern})")

DEFAULT_PREFIX: Final = "box"

INBOXES: Final = ("_INBOX.", "_R_.")
"""The prefixes of permitted reply subjects. The caller chooses the subject: no other is trusted."""

# Headers of events.
MSG_ID: Final = "Nats-Msg-Id"
BOX_SEQ: Final = "Box-Seq"
BOX_HOST: Final = "Box-Host"
TRACEPARENT: Final = "traceparent"
# Headers of requests and replies.
REQUEST_INFO: Final = "Nats-Request-Info"
EXPIRES_AT: Final = "Box-Expires-At"
DRY_RUN: Final = "Box-Dry-Run"
CONFIG_MODE: Final = "Box-Config"
CONFIG_REPLACE: Final = "replace"
INSTANCES_TOTAL: Final = "Box-Instances-Total"
RECORD_VERSION: Final = "Box-Version"
REVISION: Final = "Box-Revision"
EXPECTED_REVISION: Final = "Box-Expected-Revision"
ALL_OR_NOTHING: Final = "Box-All-Or-Nothing"
VICTIMS: Final = "Box-Victims"
REQUEST_DIGEST: Final = "Box-Request-Digest"
HIGHEST_RANK: Final = "highest-rank"
REPLY_CODE: Final = "Box-Code"
# Headers of registrations.
STATS_PART: Final = "Box-Part"  # "2/3": the second of three messages of one report
MSG_TTL: Final = "Nats-TTL"


_CORDON: Final = "cordon."


def check_name(kind: str, value: str) -> str:
    """Return `value` if it can be a subject token; raise NameRefused, naming `kind`, otherwise."""
    if _NAME.fullmatch(value) is None:
        raise NameRefused(kind, value)
    return value


def valid_trace(value: str) -> str:
    """Return `value` if it is a ``traceparent`` of W3C Trace Context, otherwise ""."""
    return value if _TRACE.fullmatch(value) else ""


def is_name(value: str) -> bool:
    """Whether `value` can be a service name, an instance id or a host name."""
    return _NAME.fullmatch(value) is not None


class Subjects(Struct, frozen=True, kw_only=True):
    """The names that one fleet uses; each starts with the fleet's prefix."""

    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        if not is_name(self.prefix):
            raise ConfigError("prefix", f"{self.prefix!r} is not a name of a-z, 0-9 and '-'")

    # Requests.

    @property
    def scale(self) -> str:
        return f"{self.prefix}.scale"

    @property
    def instances(self) -> str:
        return f"{self.prefix}.instances"

    @property
    def hosts(self) -> str:
        return f"{self.prefix}.hosts"

    @property
    def services(self) -> str:
        return f"{self.prefix}.services"

    @property
    def admin(self) -> str:
        return f"{self.prefix}.admin"

    @property
    def history(self) -> str:
        return f"{self.prefix}.history"

    @property
    def plan(self) -> str:
        return f"{self.prefix}.plan"

    @property
    def all_logs(self) -> str:
        return f"{self.prefix}.logs.*"

    def logs(self, host: str) -> str:
        return f"{self.prefix}.logs.{check_name('host', host)}"

    @property
    def queue(self) -> str:
        """The queue group in which every Box answers requests."""
        return self.prefix

    # Events and registrations.

    @property
    def all_events(self) -> str:
        return f"{self.prefix}.events.*"

    def events(self, service: str) -> str:
        return f"{self.prefix}.events.{check_name('service', service)}"

    @property
    def all_registrations(self) -> tuple[str, str]:
        return f"{self.prefix}.register.*.*", f"{self.prefix}.deregister.*.*"

    def registry_of(self, service: str) -> str:
        """The registrations and deregistrations of one service, as a filter."""
        return f"{self.prefix}.*.{check_name('service', service)}.*"

    def register(self, service: str, instance_id: str) -> str:
        return f"{self.prefix}.register.{_pair(service, instance_id)}"

    def deregister(self, service: str, instance_id: str) -> str:
        return f"{self.prefix}.deregister.{_pair(service, instance_id)}"

    # Health and loads.

    @property
    def all_health(self) -> str:
        return f"{self.prefix}.health.*.*"

    def health(self, service: str, instance_id: str) -> str:
        return f"{self.prefix}.health.{_pair(service, instance_id)}"

    @property
    def all_stats(self) -> str:
        return f"{self.prefix}.stats.*"

    def stats(self, host: str) -> str:
        return f"{self.prefix}.stats.{check_name('host', host)}"

    # Dead letters.

    @property
    def all_dead(self) -> str:
        return f"{self.prefix}.dead.*"

    def dead(self, durable: str) -> str:
        return f"{self.prefix}.dead.{check_name('durable', durable)}"

    # Streams and buckets.

    @property
    def events_stream(self) -> str:
        return f"{self.prefix.upper()}_EVENTS"

    @property
    def registry_stream(self) -> str:
        return f"{self.prefix.upper()}_REGISTRY"

    @property
    def dead_stream(self) -> str:
        return f"{self.prefix.upper()}_DEAD"

    @property
    def services_bucket(self) -> str:
        return f"{self.prefix}_services"

    @property
    def slots_bucket(self) -> str:
        return f"{self.prefix}_slots"

    @property
    def hosts_bucket(self) -> str:
        return f"{self.prefix}_hosts"

    @property
    def admin_bucket(self) -> str:
        return f"{self.prefix}_admin"


def last_token(subject: str) -> str:
    """The text after the last dot: the service of an event, the host of a stats message."""
    return subject.rpartition(".")[2]


def parse_instance_subject(subject: str) -> tuple[str, str, str]:
    """The kind of `subject` (``register``, ``health``, …), its service and its instance id.

    Raises NameRefused for any other subject.
    """
    match = _INSTANCE.fullmatch(subject)
    if match is None:
        raise NameRefused("subject", subject)
    kind, service, instance_id = match.groups()
    return kind, service, instance_id


def slot_key(service: str, slot: int) -> str:
    """The key of a slot in the slots bucket: ``<service>.<slot>``."""
    return f"{check_name('service', service)}.{slot}"


def parse_slot_key(key: str) -> tuple[str, int]:
    """The service and the slot of `key`; raises NameRefused if it is not a slot's key."""
    service, _, slot = key.rpartition(".")
    if not (is_name(service) and _NUMBER.fullmatch(slot)):
        raise NameRefused("slot key", key)
    return service, int(slot)


def parse_sequence(text: str) -> int | None:
    """The number in a header ``Box-Seq``; None if it is not one, or beyond any real sequence."""
    return int(text) if _SEQUENCE.fullmatch(text) else None


def cordon_key(host: str) -> str:
    """The key of an operator's order for a host, in the admin bucket: ``cordon.<host>``."""
    return f"{_CORDON}{check_name('host', host)}"


def parse_cordon_key(key: str) -> str:
    """The host of `key`; raises NameRefused if it is not the key of an order."""
    host = key.removeprefix(_CORDON)
    if not (key.startswith(_CORDON) and is_name(host)):
        raise NameRefused("key of an order", key)
    return host


def _pair(service: str, instance_id: str) -> str:
    return f"{check_name('service', service)}.{check_name('instance id', instance_id)}"
