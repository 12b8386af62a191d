"""What must hold in every simulated fleet, checked as it happens, and once all is healed.

At each write to the store:
- A decision follows the record that it was taken from: versions count by one. What is written
  otherwise, after a loss of the store, is a record that once was there.
- The sum of the targets of services that compete for hosts is, whenever a target rises, no more
  than the capacity that the Box saw which decided.
- A decision lowers a target only if fewer were asked for. Nothing but a decision changes one.
- A slot leaves the set because fewer were asked for, or because its instance is to be replaced.
- A slot of another host is taken, or deleted, only when that host's lease was gone from the
  store within the last seconds, and later where half of the hosts or more vanished at once.
- No host claims another slot beyond its room, but on its way back from a trouble.

Always: a slot runs on two hosts that both mean to keep it only while all but one of them are in
trouble: their Box dead, frozen, cut off, or that was so in the last seconds, or the store was lost.
An instance is told to leave only where its slot is out of the set, or another's.

In the end: an acknowledged request is in its service's record, an id has had one reply; each slot
of a set runs once and is Ready, unless no host has room for it; nothing else runs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from bridge.box.scheduler.admission import Admission
from bridge.box.scheduler.placement import able_hosts, capacity
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import RECEIPTS, HostOrder, HostRecord, ServiceRecord, SlotRecord
from bridge.protocol import InstanceState, ScaleRequest
from bridge.reply_codes import ReplyCode
from bridge.subjects import cordon_key, slot_key
from tests.sim.instances import TIMING, SlotInstance
from tests.sim.view import HEARTBEAT, REPLY_TIMEOUT, Kept

if TYPE_CHECKING:
    from tests.sim.hosts import Host
    from tests.sim.world import World

_GRACE: Final = REPLY_TIMEOUT + HEARTBEAT + 7.0  # seconds after a trouble: for a write that was on
# its way to be given up, for others to restore what was lost, and to resync and to attend to all
# services in turn, with hundreds of slots over a slow net
_SLOWER: Final = 200.0  # seconds more for all messages lost: each costs a timeout of 5 s
_FLIGHT: Final = 8.0  # seconds between a look at a lease and the landing of what follows from it
_SLACK: Final = 6.0  # seconds from a renewal to its being heard of, and from a look to the act


class Violation(AssertionError):
    """The fleet broke a promise."""


class Seen(Struct, frozen=True):
    """What a Box saw when it wrote a record: the capacity, and the claims that compete for it."""

    capacity: int
    rivals: frozenset[str]
    claims: dict[int, SlotRecord]
    ordered: frozenset[str]


class Checks:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._intents: dict[tuple[str, int, str], Seen] = {}
        self._written: dict[str, dict[int, list[ServiceRecord]]] = defaultdict(dict)
        self._replies: dict[tuple[str, str], tuple[object, ...]] = {}
        self._runs: dict[tuple[str, int], dict[str, SlotInstance]] = defaultdict(dict)
        self._doubles: set[tuple[str, int]] = set()
        self.claims: Counter[str] = Counter()
        self._renewed: dict[str, float] = {}
        self._absent_until: dict[str, float] = {}
        self._orders: dict[str, HostOrder] = {}
        self._out: dict[tuple[str, int], float] = {}
        self._forgiven: set[str] = set()
        self.lost_at = float("-inf")
        self._grace = _GRACE
        self.counts: Counter[str] = Counter()

    def expect_loss(self, share: float) -> None:
        """So many of the messages will be lost."""
        self._grace = _GRACE + _SLOWER * share

    # ── what hosts do ────────────────────────────────────────────────────────────────────

    def intends(self, service: str, record: ServiceRecord, fleet: FleetState) -> None:
        """A Box is about to write `record`, from what it sees."""
        able, _ = able_hosts(service, fleet, record)
        seen = Seen(
            sum(capacity(name, host, fleet) for name, host in able.items()),
            frozenset(
                name
                for host in able.values()
                for name, offer in host.services.items()
                if offer.needs.items() <= host.labels.items()
            ),
            dict(fleet.slots_of(service)),
            frozenset(fleet.orders),
        )
        assert record.decision is not None
        self._intents[service, record.version, record.decision.host] = seen

    def runs(self, host: Host, held: SlotInstance) -> None:
        """An instance has been started."""
        if held.leaving or not held.owned:
            return
        key = held.service, held.slot
        self._runs[key][host.name] = held
        if len(self._runs[key]) > 1:
            self.counts["doubles"] += 1
            self._doubles.add(key)
            self._judge_double(key)

    def stands_down(self, host: Host, held: SlotInstance) -> None:
        """An instance has ended, or means to."""
        runs = self._runs.get((held.service, held.slot), {})
        if runs.get(host.name) is not None and runs[host.name].id == held.id:
            del runs[host.name]

    def leaves(self, host: Host, held: SlotInstance, reason: str) -> None:
        """An instance is about to drain."""
        self.stands_down(host, held)
        self.counts["drains"] += 1
        now, buckets = self._world.kernel.now, self._world.buckets
        record = buckets["services"].get(held.service, now)
        claim = buckets["slots"].get(slot_key(held.service, held.slot), now)
        wanted = record is not None and _is_among(held.slot, record.slots)
        out = self._out.get((held.service, held.slot), float("-inf"))  # a view may lag behind it
        own = claim is not None and claim.host == host.name and claim.info.id == held.id
        if wanted and own and now - out > _SLACK and not self._in_trouble(host):
            raise Violation(f"{held.id} on {host.name} is told to leave its slot: {reason}")

    def excuse(self, host: Host) -> None:
        """The host was in trouble until now."""
        host.calm_from = self._world.kernel.now + self._grace
        if not self._world.private:
            self._world.group_of(host).resynced(host)

    def judge(self) -> None:
        """Look again at what runs twice."""
        for key in sorted(self._doubles):
            if len(self._runs[key]) < 2:
                self._doubles.discard(key)
            else:
                self._judge_double(key)

    def _judge_double(self, key: tuple[str, int]) -> None:
        hosts = [self._world.hosts[name] for name in self._runs[key]]
        sound = [host.name for host in hosts if not self._in_trouble(host)]
        if len(sound) > 1:
            raise Violation(f"slot {slot_key(*key)} runs on {' and '.join(sorted(sound))}")

    def _in_trouble(self, host: Host) -> bool:
        now = self._world.kernel.now
        calm_from = max(
            host.calm_from,
            self.lost_at + 2 * self._grace,
            self._absent_until.get(host.name, 0.0) + self._grace,
        )
        return host.in_trouble or now < calm_from

    # ── writes to the store ─────────────────────────────────────────────────────────────

    def on_host(self, key: str, old: HostRecord | None, new: HostRecord | None) -> None:
        """A lease was renewed."""
        now = self._world.kernel.now
        if now - self._renewed.get(key, float("-inf")) >= TIMING.lease:
            self._absent_until[key] = now
        self._renewed[key] = now

    def on_service(self, key: str, old: ServiceRecord | None, new: ServiceRecord | None) -> None:
        """A service's record was written."""
        assert new is not None
        assert new.decision is not None
        old = old or ServiceRecord()
        gone = set(old.slots) - set(new.slots)
        self._out |= {(key, slot): self._world.kernel.now for slot in gone}
        same = self._written[key].setdefault(new.version, [])
        seen = self._intents.pop((key, new.version, new.decision.host), None)
        if seen is None or new.version != old.version + 1:
            if new not in same or new.version <= old.version:
                raise Violation(
                    f"{key}: version {new.version} of {new.decision.host} follows {old.version}"
                )
            self.counts["restored"] += 1
            return
        self._check_fork(key, new)
        same.append(new)
        self.counts["decisions"] += 1
        if new.target > old.target:
            self._check_capacity(key, new, seen)
        asked = new.decision.replicas
        if new.target < min(asked, old.target):
            raise Violation(f"{key}: {asked} asked for, and the target fell to {new.target}")
        self._check_removed(key, old, new, seen)

    def _check_fork(self, key: str, new: ServiceRecord) -> None:
        """After a loss a Box that knows nothing of a service, for its disk is gone, may decide
        before others have restored the record; what they restore wins.
        """
        newest = max((version for version, found in self._written[key].items() if found), default=0)
        if new.version <= newest and key not in self._forgiven:
            if not self.restoring:
                raise Violation(f"{key}: version {new.version} is decided a second time")
            self._forgiven.add(key)

    def _check_capacity(self, key: str, new: ServiceRecord, seen: Seen) -> None:
        now, services = self._world.kernel.now, self._world.buckets["services"]
        promised = sum(
            record.target for name in seen.rivals if (record := services.get(name, now)) is not None
        )
        if promised > seen.capacity:
            raise Violation(
                f"{key}: {promised} promised with its target {new.target}, where "
                f"{new.decision and new.decision.host} saw room for {seen.capacity}"
            )

    def _check_removed(self, key: str, old: ServiceRecord, new: ServiceRecord, seen: Seen) -> None:
        removed = set(old.slots) - set(new.slots)
        if new.target != old.target:
            if len(new.slots) != new.target:
                raise Violation(f"{key}: {len(new.slots)} slots for a target of {new.target}")
            return
        stopped = new.rollout is not None and new.rollout.stopped
        trimmed = new.rollout is None and len(new.slots) == new.target
        if len(removed) > self._world.max_surge(key):
            raise Violation(f"{key}: slots {sorted(removed)} go at once")
        for slot in removed:
            claim = seen.claims.get(slot)
            if claim is None or stopped or trimmed or slot in old.moves + old.restarts:
                continue
            if claim.config == new.config_id and claim.host not in seen.ordered:
                raise Violation(f"{key}: slot {slot} goes, and nothing is wrong with it")

    def on_slot(self, key: str, old: SlotRecord | None, new: SlotRecord | None) -> None:
        """A slot was claimed, updated or let go."""
        if old is not None:
            self.claims[old.host] -= 1
        if new is not None:
            self.claims[new.host] += 1
            host = self._world.hosts[new.host]
            room = host.room  # on its way back a host has instances that it claims no more
            fresh = new.info.state is InstanceState.CREATING
            if fresh and self.claims[new.host] > room and not self._in_trouble(host):
                raise Violation(f"{new.host} holds {self.claims[new.host]} claims of {room}")
        writer = self._world.writer
        self._world.kernel.note(lambda: f"{key}: {_brief(old)} → {_brief(new)}")
        if old is not None and (old.host, old.host_id) != writer:
            self._check_taken(key, old)
        elif new is not None and (new.host, new.host_id) != writer:
            raise Violation(f"{key}: {writer} writes for {new.host}")

    def _check_taken(self, key: str, old: SlotRecord) -> None:
        now, world = self._world.kernel.now, self._world
        self.counts["takeovers"] += 1
        world.kernel.note(f"{key} is taken from {old.host}")
        host = world.hosts[old.host]
        if host.host_id != old.host_id or self.restoring:
            return
        renewed = self._renewed.get(old.host, float("-inf"))
        absent = now - renewed >= TIMING.lease
        if not absent and now - self._absent_until.get(old.host, float("-inf")) > _FLIGHT:
            raise Violation(f"{key} is taken from {old.host}, whose lease stands")
        if absent and self._is_of_wave(renewed):
            raise Violation(f"{key} is taken from {old.host}, one of many that vanished at once")

    def _is_of_wave(self, renewed: float) -> bool:
        """Whether a lease renewed last at `renewed` ended in a wave, and less than a lease ago,
        whoever looked.
        """
        now, lease = self._world.kernel.now, TIMING.lease
        # Nobody counts a lease from before it was renewed, so none of these is gone for longer;
        # and whoever missed its last renewal counts as silent, even some seconds ago.
        first, last = now - 2 * lease, now - lease / 2 - _SLACK
        wave = sum(first < at < last for at in self._renewed.values())
        known = sum(
            at > first - _SLACK or self.claims[name] > 0 for name, at in self._renewed.items()
        )
        return renewed > first and wave >= 2 and wave * 2 >= known

    def on_loss(self, sound: list[Kept]) -> None:
        """The store comes back empty or older: what no `sound` Box has journaled may be gone."""
        world = self._world
        self.lost_at = world.kernel.now
        self.counts["losses"] += 1
        for name, versions in self._written.items():
            newest = max(
                (kept.services[name].version for kept in sound if name in kept.services), default=0
            )
            if max(versions, default=0) > newest:
                self._forgiven.add(name)
        for host, order in self._orders.items():
            known = (kept.orders[host].version for kept in sound if host in kept.orders)
            if max(known, default=0) < order.version:
                self._forgiven.add(cordon_key(host))  # whoever has seen it is in trouble
        self.claims.clear()
        for entry in world.buckets["slots"].last.values():
            if entry.value is not None:
                self.claims[entry.value.host] += 1

    @property
    def restoring(self) -> bool:
        """Whether a loss of the store may still be being made good."""
        return self._world.kernel.now < self.lost_at + 2 * self._grace

    def ordered(self, host: Host, order: HostOrder) -> None:
        """An operator orders something for the host, or takes it back."""
        self._orders[host.name] = order

    def judge_orders(self) -> None:
        """What operators ordered last is what the store has, once a loss has been made good."""
        if self.restoring:
            return
        admin, now = self._world.buckets["admin"], self._world.kernel.now
        for name, order in self._orders.items():
            if cordon_key(name) in self._forgiven:
                continue
            if (there := admin.get(cordon_key(name), now)) != order:
                raise Violation(f"{name}: {order} was ordered, and {there} is in the store")
            self.counts["orders_kept"] += 1

    # ── what gateways receive ────────────────────────────────────────────────────────────

    def replied(self, request: ScaleRequest, answer: Admission) -> None:
        """A gateway has an answer."""
        response = answer.response
        if answer.code not in (None, ReplyCode.CAPPED):
            self.counts["refused"] += 1
            return
        self.counts["acknowledged"] += 1
        reply = (response.accepted, response.target_replicas, response.error)
        key = request.service, request.request_id
        first = self._replies.setdefault(key, reply)
        if first != reply and request.service not in self._forgiven:
            raise Violation(f"{key}: answered {first}, and then {reply}")

    # ── the end ──────────────────────────────────────────────────────────────────────────

    def finish(self) -> None:
        """All that was acknowledged is there, and had one effect."""
        services = self._world.buckets["services"]
        now = self._world.kernel.now
        for service, request_id in self._replies:
            record = services.get(service, now)
            kept = {receipt.request_id for receipt in record.receipts} if record else set()
            if service in self._forgiven or request_id in kept or len(kept) == RECEIPTS:
                continue
            raise Violation(f"{service}: request {request_id} was answered, and is not there")
        for service, versions in self._written.items():
            effects: Counter[str] = Counter()
            for records in versions.values():
                for record in records[:1]:
                    if record.decision and record.decision.request_id:
                        effects[record.decision.request_id] += 1
            twice = [request_id for request_id, times in effects.items() if times > 1]
            if twice and service not in self._forgiven:
                raise Violation(f"{service}: request {twice[0]} had two effects")


def _is_among(slot: int, slots: list[int]) -> bool:
    """Whether the slot is one of these, which are sorted."""
    at = bisect_left(slots, slot)
    return at < len(slots) and slots[at] == slot


def _brief(record: SlotRecord | None) -> str:
    return "free" if record is None else f"{record.info.id} on {record.host} {record.info.state}"
