"""The history of instances over a stretch of time, gathered from their events, to be drawn.

Pure: events and the time come in, and a `Timeline` goes out. The text of peers is made printable
here, once, for every way of drawing it.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime
from typing import Final

from msgspec import Struct, field

from bridge.printable import printable
from bridge.protocol import InstanceEvent, InstanceState

ENDS: Final = (InstanceState.STOPPED, InstanceState.FAILED)

_MESSAGE: Final = 300  # letters of a message that are kept
_NOTES: Final = 50  # notes of one instance that are kept, the latest


class Span(Struct, frozen=True, kw_only=True):
    """A time that an instance spent in one state."""

    state: InstanceState
    begin: datetime
    end: datetime


class Note(Struct, frozen=True, kw_only=True):
    """The message of an event: a health change, or the reason of an end."""

    at: datetime
    message: str


class InstanceHistory(Struct, frozen=True, kw_only=True):
    """One instance. `ended`: Stopped or Failed, None while it lives; `last`: the latest note."""

    instance_id: str
    spans: list[Span]
    notes: list[Note]
    ended: InstanceState | None
    last: Note


class Timeline(Struct, frozen=True, kw_only=True):
    """The instances between two times, in the order of their first events; `left_out` more did not
    fit.
    """

    begin: datetime
    end: datetime
    instances: list[InstanceHistory] = field(name="lives")
    left_out: int = 0


class _Instance(Struct):
    """An instance whose events are being read."""

    steps: list[tuple[datetime, InstanceState]]
    notes: deque[Note]
    last: Note
    order: int


class History:
    """Gathers events, in their order, and keeps what can be drawn.

    It keeps the instances that were there at or after `since` (None: all). Of those that have ended
    it keeps the last `most`, so that a crash loop of a week takes no more memory.
    """

    def __init__(self, *, since: datetime | None, most: int) -> None:
        self._since = since
        self._most = most
        self._living: dict[str, _Instance] = {}
        self._ended: deque[tuple[str, _Instance]] = deque()
        self._left_out = 0
        self._order = 0

    def add(self, event: InstanceEvent) -> None:
        """Add the next event."""
        at, state = event.timestamp, event.to_state
        note = Note(at=at, message=_shortened(event.message))
        instance = self._living.get(event.instance_id)
        if instance is None:
            self._order += 1
            instance = _Instance([], deque(maxlen=_NOTES), note, self._order)
            self._living[event.instance_id] = instance
            if event.from_state is not InstanceState.CREATING and self._since:
                # Its first events are no longer stored: it was in that state since the begin.
                instance.steps.append((min(at, self._since), event.from_state))
        instance.last = note
        if event.from_state is state:
            instance.notes.append(note)
        if not instance.steps or instance.steps[-1][1] is not state:
            self._step(instance, at, state)
        if state in ENDS:
            self._end(event.instance_id, at)

    def timeline(self, now: datetime) -> Timeline:
        """The timeline up to `now`, or up to the last event if no instance lives any more."""
        named = [*self._ended, *self._living.items()]
        named.sort(key=lambda pair: (pair[0] in self._living, pair[1].last.at))
        kept = sorted(named[-self._most :], key=lambda pair: pair[1].order)
        times = [at for _, one in kept for at, _ in (one.steps[0], one.steps[-1])]
        # A Box's clock may be ahead of this one.
        end = max([now, *times]) if self._since or self._living else max(times, default=now)
        begin = self._since or min(times, default=end)
        return Timeline(
            begin=begin,
            end=end,
            instances=[_finish(name, one, begin, end) for name, one in kept],
            left_out=self._left_out + len(named) - len(kept),
        )

    def _step(self, instance: _Instance, at: datetime, state: InstanceState) -> None:
        """Add a step; of the steps before `since` only the last is drawn."""
        if self._since and at <= self._since:
            instance.steps.clear()
        instance.steps.append((at, state))

    def _end(self, name: str, at: datetime) -> None:
        instance = self._living.pop(name)
        if self._since and at < self._since:
            return
        self._ended.append((name, instance))
        if len(self._ended) > self._most:
            self._ended.popleft()
            self._left_out += 1


def _shortened(message: str) -> str:
    return printable(message[:_MESSAGE]) + ("…" if len(message) > _MESSAGE else "")


def _finish(name: str, instance: _Instance, begin: datetime, end: datetime) -> InstanceHistory:
    steps = instance.steps
    state = steps[-1][1]
    nexts = [at for at, _ in steps[1:]] + [end]
    return InstanceHistory(
        instance_id=name,
        spans=[
            Span(state=step, begin=max(at, begin), end=max(until, begin))
            for (at, step), until in zip(steps, nexts, strict=True)
            if step not in ENDS
        ],
        notes=[note for note in instance.notes if note.at >= begin],
        ended=state if state in ENDS else None,
        last=instance.last,
    )
