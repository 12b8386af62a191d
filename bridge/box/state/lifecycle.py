"""The life of an instance: which state may follow which, and the event of each step. Pure.

    Creating → Booting → Ready ⇄ Busy
    Ready | Busy → Draining → Stopping → Stopped
    Creating | Booting | Ready | Busy | Draining | Stopping → Failed
    Creating | Booting → Stopping

Stopped and Failed are final. Events form one chain: each starts where the last one ended, the
first at Creating, numbered 1, 2, 3 … without gaps. A note is an event that changes no state.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from bridge.protocol import InstanceEvent, InstanceHealth, InstanceInfo, InstanceState

_S = InstanceState

NEXT: Final[dict[InstanceState, frozenset[InstanceState]]] = {
    _S.CREATING: frozenset({_S.BOOTING, _S.STOPPING, _S.FAILED}),
    _S.BOOTING: frozenset({_S.READY, _S.STOPPING, _S.FAILED}),
    _S.READY: frozenset({_S.BUSY, _S.DRAINING, _S.FAILED}),
    _S.BUSY: frozenset({_S.READY, _S.DRAINING, _S.FAILED}),
    _S.DRAINING: frozenset({_S.STOPPING, _S.FAILED}),
    _S.STOPPING: frozenset({_S.STOPPED, _S.FAILED}),
    _S.STOPPED: frozenset(),
    _S.FAILED: frozenset(),
}

SERVING: Final = frozenset({_S.READY, _S.BUSY})
ENDED: Final = frozenset({_S.STOPPED, _S.FAILED})

MAX_MESSAGE: Final = 1000  # characters of an event's message; an event must fit its stream


class Life(Struct, frozen=True, kw_only=True):
    """An instance after its last event, whose Box-Seq is `seq`."""

    info: InstanceInfo
    seq: int = 0
    idle_samples: int = 0


class IllegalStep(ValueError):
    """A step between two states that may not follow each other: a bug, never caused by input."""


def begin(instance_id: str, service: str, at: datetime) -> Life:
    """A new life, in Creating. It has no event before the first step."""
    info = InstanceInfo(id=instance_id, state=_S.CREATING, service=service, created_at=at)
    return Life(info=info)


def serve_at(life: Life, endpoint: str) -> Life:
    """The same life, serving at `endpoint` (``host:port``)."""
    return replace(life, info=replace(life.info, endpoint=endpoint))


def step(
    life: Life, to: InstanceState, at: datetime, message: str = ""
) -> tuple[Life, InstanceEvent]:
    """The life after the step to `to`, and its event. Raises IllegalStep."""
    info = life.info
    if to not in NEXT[info.state]:
        raise IllegalStep(f"{info.id}: {info.state} → {to}")
    ready_at = at if to is _S.READY and info.ready_at is None else info.ready_at
    changed = replace(info, state=to, ready_at=ready_at)
    return _with_event(replace(life, info=changed, idle_samples=0), info.state, at, message)


def note(life: Life, at: datetime, message: str) -> tuple[Life, InstanceEvent]:
    """The same life, and a note with `message`. Raises IllegalStep if the instance has ended."""
    if life.info.state in ENDED:
        raise IllegalStep(f"{life.info.id}: a note after {life.info.state}")
    return _with_event(life, life.info.state, at, message)


def judge(life: Life, healthy: bool, at: datetime, why: str) -> tuple[Life, InstanceEvent] | None:
    """The life and the note after a health check; None if the health is the same."""
    info = life.info
    if info.health.healthy == healthy or info.state in ENDED:
        return None
    changed = replace(life, info=replace(info, health=replace(info.health, healthy=healthy)))
    return note(changed, at, f"{'healthy' if healthy else 'unhealthy'}: {why}")


def sample(
    life: Life, health: InstanceHealth, at: datetime, *, idle_samples: int
) -> tuple[Life, InstanceEvent | None]:
    """The life after a load sample: Busy with requests in flight, Ready after `idle_samples` in a
    row without. It takes over CPU, memory and requests; `healthy` stays as it is.
    """
    info = life.info
    health = replace(health, healthy=info.health.healthy)
    idle = 0 if health.inflight_requests else life.idle_samples + 1
    life = replace(life, info=replace(info, health=health), idle_samples=idle)
    if info.state is _S.READY and health.inflight_requests:
        return step(life, _S.BUSY, at)
    if info.state is _S.BUSY and idle >= idle_samples:
        return step(life, _S.READY, at)
    return life, None


def _with_event(
    life: Life, from_state: InstanceState, at: datetime, message: str
) -> tuple[Life, InstanceEvent]:
    event = InstanceEvent.transition(
        life.info.id, life.info.service, from_state, life.info.state, at=at
    )
    if message:
        event = event.with_message(_bounded(message))
    return replace(life, seq=life.seq + 1), event


def _bounded(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"
