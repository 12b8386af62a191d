"""``[nats]`` and ``[timing]``: the connection, and the times of the protocol."""

from __future__ import annotations

import re
from typing import Annotated, Final

from msgspec import Meta, Struct, field

from bridge.nats_url import parse_urls
from bridge.settings.units import Count, Interval
from bridge.subjects import DEFAULT_PREFIX, Subjects, is_name

EVENTS_MAX_BYTES: Final = 2**30
DEFAULT_URL: Final = "nats://127.0.0.1:4222"
_SUBJECT: Final = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")


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
    request_info: bool = False
    """Record the user that the header `Nats-Request-Info` names as the sender of a request. The
    contexts of `auth init` set it. Set it only where no client shares the account of the Boxes: a
    client in their account could write any name into the header.
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
