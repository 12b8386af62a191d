"""The filter of a reader, and decoding of messages into events.

A subject names the service, so the server filters services. Only the payload has the state, so
states are filtered here, after decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Struct

from bridge.bus.core.message import Message
from bridge.errors import NameRefused, ProtocolError
from bridge.observe import Metrics
from bridge.protocol import InstanceEvent, InstanceState, decode
from bridge.subjects import Subjects, check_name, last_token
from bridge.validation import DISAGREE

Services = str | Iterable[str] | None
"""One service, several, or all (None)."""


OnRefused = Callable[[str, str], None]
"""Gets the subject of a message that is no event, and the reason. Must not block."""


class EventFilter(Struct, frozen=True, kw_only=True):
    """Events of these services (None: of all) that go to one of these states (None: to any).

    A note, which changes no state, belongs to the current state of its instance.
    """

    services: frozenset[str] | None = None
    states: frozenset[InstanceState] | None = None

    @classmethod
    def of(cls, service: Services, states: Iterable[InstanceState] | None) -> EventFilter:
        """Raises NameRefused for an invalid service name, and for an empty list of services."""
        names = None if service is None else [service] if isinstance(service, str) else [*service]
        if names is not None and not names:
            raise NameRefused("service", "")
        for name in names or ():
            check_name("service", name)
        return cls(
            services=None if names is None else frozenset(names),
            states=None if states is None else frozenset(states),
        )

    def takes(self, event: InstanceEvent) -> bool:
        """Whether the reader wants `event`."""
        return (self.states is None or event.to_state in self.states) and (
            self.services is None or event.service in self.services
        )

    def subjects(self, subjects: Subjects) -> list[str]:
        """The subjects to subscribe to."""
        if self.services is None:
            return [subjects.all_events]
        return sorted(map(subjects.events, self.services))


def read_event(
    message: Message, metrics: Metrics, on_refused: OnRefused | None = None
) -> InstanceEvent | None:
    """The event in `message`; None, counted and reported to `on_refused`, if it is malformed or of
    another service.
    """
    try:
        event = decode(InstanceEvent, message.data)
    except ProtocolError as exc:
        reason, detail = "malformed", str(exc)
    else:
        if event.service == last_token(message.subject):
            return event
        reason = detail = DISAGREE
    metrics.refuse("events", reason)
    if on_refused is not None:
        on_refused(message.subject, detail)
    return None
