"""One simulated fleet: its size, its faults, and its end. All from a seed."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import HostOrder, HostRecord, Offer, ServiceRecord, SlotRecord
from bridge.protocol import encode
from bridge.subjects import cordon_key
from tests.sim.box import BoxLife
from tests.sim.checks import Checks, Violation
from tests.sim.gateway import Gateway
from tests.sim.groups import Group
from tests.sim.hosts import Host
from tests.sim.instances import TIMING, Times
from tests.sim.kernel import Kernel
from tests.sim.store import Bucket
from tests.sim.unsettled import Unsettled
from tests.sim.view import Bus, Link, View

PRIVATE: Final = 16  # hosts up to which each has a view of its own
_GROUPS: Final = 3
_PATIENCE: Final = 400.0  # seconds after which a healed fleet must have settled: the longest
# back-off of an instance is 60 s, five of them let a slot go, and a rollout takes its time


class Size(Struct, frozen=True):
    """How large a fleet is, and for how many seconds it has troubles."""

    hosts: int
    instances: int
    troubled: float


class World:
    """See the module. `run` raises Violation, or returns when all is well."""

    def __init__(self, seed: int, size: Size, *, trace: bool = False, planted: str = "") -> None:
        self.kernel = kernel = Kernel(seed, trace=trace)
        self.size = size
        self.lease = float(TIMING.lease)
        self.private = size.hosts <= PRIVATE
        self.times = Times(kernel, self.private)
        self.checks = Checks(self)
        self._unsettled = Unsettled(self, self.checks)
        chance = kernel.random
        self._failures = chance.choice([0.0, 0.02, 0.2]) if self.private else 0.001
        loss = chance.choice([0.0, 0.01, 0.1]) if self.private else 0.001
        slowest = chance.choice([0.01, 0.3, 1.0]) if self.private else 0.05
        self.bus = Bus(kernel, loss, slowest)
        checks = self.checks
        checks.expect_loss(loss)
        self.buckets = {
            name: Bucket(name, cls, self._writes(name, check), ttl, planted)
            for name, cls, check, ttl in (
                ("services", ServiceRecord, checks.on_service, 0.0),
                ("slots", SlotRecord, checks.on_slot, 0.0),
                ("hosts", HostRecord, checks.on_host, self.lease),
                ("admin", HostOrder, lambda *_: None, 0.0),
            )
        }
        self.wiped = False
        self._views: list[View] = []
        self._groups: list[Group] = []
        self._ids = 0
        self.calm = False
        self.services: list[str] = []
        self.hosts: dict[str, Host] = {}
        self.holders: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
        """Of each slot, the hosts that have something there, or had as they died."""
        self._furnish()
        if not self.private:
            self._groups = [Group(self) for _ in range(_GROUPS)]
            self._views = [group.view for group in self._groups]
        self._gateway = Gateway(self)

    # ── what there is ────────────────────────────────────────────────────────────────────

    def _furnish(self) -> None:
        chance, size = self.kernel.random, self.size
        pools = max(1, size.hosts // 50)
        a_pool = max(1, min(10, size.instances // pools // 60) if pools > 1 else 1)
        if pools == 1:
            a_pool = chance.randint(1, 5)
        offers: list[dict[str, Offer]] = []
        for pool in range(pools):
            names = [f"s{pool}-{number}" for number in range(a_pool)]
            self.services += names
            offers.append({name: self._offer() for name in names})
        room = -(-size.instances // size.hosts)
        for number in range(size.hosts):
            name = f"box-{number:04d}"
            some = dict(offers[number % pools])
            if self.private and len(some) > 1 and chance.random() < 0.3:
                del some[chance.choice(sorted(some))]
            self.hosts[name] = Host(
                self,
                name,
                some,
                max(1, room + chance.randint(0, 1 + room // 5)),
                chance.choice([2, 4, 8]),
                chance.choice(["a", "a", "b"]),
            )

    def _offer(self) -> Offer:
        chance = self.kernel.random
        return Offer(
            fixed_port=8080 if self.private and chance.random() < 0.1 else 0,
            needs={"zone": "a"} if chance.random() < 0.2 else {},
            max_surge=chance.choice([1, 1, 3]),
        )

    def max_surge(self, service: str) -> int:
        """How many extra instances there may be at a time."""
        offers = (host.services.get(service) for host in self.hosts.values())
        return min((offer.max_surge for offer in offers if offer is not None), default=1)

    def new_id(self, service: str) -> str:
        """An id that no instance has had."""
        self._ids += 1
        return f"{service}-{self._ids}"

    def fails(self) -> bool:
        """Whether an instance that boots fails."""
        return not self.calm and self.kernel.random.random() < self._failures

    @property
    def writer(self) -> tuple[str, str]:
        """Who writes the slots just now."""
        return self.buckets["slots"].writer

    def _writes(self, name: str, check: Callable[[str, Any, Any], None]) -> Callable[..., None]:
        def wrote(key: str, old: Any, new: Any) -> None:
            check(key, old, new)
            for view in self._views:
                view.notice(name)

        return wrote

    # ── views ────────────────────────────────────────────────────────────────────────────

    def group_of(self, host: Host) -> Group:
        """The group whose view `host` shares."""
        return self._groups[int(host.name[4:]) % len(self._groups)]

    def view_for(self, host: Host, link: Link) -> View:
        """The view for a new life of `host`."""
        if not self.private:
            return self.group_of(host).view
        view = View(
            self.kernel,
            self.bus,
            self.buckets,
            self.lease,
            host._private,
            link,
            lambda: host.life.on_loss() if host.life else None,
        )
        self._views.append(view)
        return view

    def joined(self, life: BoxLife) -> None:
        """A life of a Box has begun."""
        if not self.private:
            self.group_of(life.host).members[life.host.name] = life

    def left(self, life: BoxLife) -> None:
        """It has ended."""
        if self.private:
            self._views.remove(life.view)
        else:
            self.group_of(life.host).members.pop(life.host.name, None)

    def a_state(self) -> FleetState:
        """The fleet as some sound Box sees it."""
        for host in self.hosts.values():
            if host.life is not None and host.life.may_plan():
                return host.life.fleet.state
        return FleetState()

    # ── the run ──────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """From the first boot to the end. Raises Violation."""
        kernel, size = self.kernel, self.size
        for host in self.hosts.values():
            kernel.after(kernel.random.random(), host.boot)
        self._judging()
        kernel.run_until(8.0)
        start = 15.0 if self.private else 40.0
        usual = max(1, size.instances // len(self.services))
        in_turn = sorted(self.services, key=lambda name: name.partition("-")[::-1])  # of the pools
        for number, service in enumerate(in_turn):
            later = (start - 15.0) * number / len(self.services)  # decisions come one by one
            kernel.after(later, functools.partial(self._gateway.ask, service, usual))
        for _ in range(kernel.log_uniform(1, 40)):
            kernel.after(
                kernel.random.uniform(1, start + size.troubled), self._gateway.ask_something
            )
        for _ in range(kernel.log_uniform(1, 20)):
            kernel.after(kernel.random.uniform(start / 2, start + size.troubled), self._trouble)
        kernel.run_until(start + size.troubled + 8.0)
        self._heal()
        self._settle()
        self.checks.finish()

    def _judging(self) -> None:
        self.checks.judge()
        if self.kernel.random.random() < 0.05:
            for bucket in self.buckets.values():
                bucket.keep()
        self.kernel.after(1.0, self._judging)

    def _settle(self) -> None:
        kernel, since = self.kernel, self.kernel.now
        problems = ["not looked"]
        while problems:
            for host in self.hosts.values():
                self._lift(host)  # also what is written back only now
            kernel.run_until(kernel.now + (5.0 if self.private else 20.0))
            problems = list(self._unsettled.all())
            if problems and kernel.now - since > _PATIENCE:
                listed = "; ".join(problems[:5])
                raise Violation(f"{len(problems)} not settled after {_PATIENCE:g} s: {listed}")
        self.checks.counts["settled_ms"] = round(1000 * (kernel.now - since))

    def _heal(self) -> None:
        self.kernel.note("all is healed")
        self.calm = True
        self.bus.loss = 0.0
        self.checks.judge_orders()
        for host in self.hosts.values():
            if host.life is not None and host.life.link.frozen:
                self.kernel.thaw(host.life.link)
            host.heal()
            host.boot()

    # ── troubles ─────────────────────────────────────────────────────────────────────────

    def _trouble(self) -> None:
        if self.calm or self.kernel.now < self.checks.lost_at + 25.0:
            return  # a loss is healed from what the living have journaled: let them
        chance = self.kernel.random
        troubles: list[Callable[[Host], None]] = [
            self._die, self._die, self._crash, self._freeze, self._cut, self._order,
            self._one_ends, self._one_ends, self._outage, self._lose,
        ]  # fmt: skip
        trouble = chance.choice(troubles)
        host = self.hosts[chance.choice(sorted(self.hosts))]
        self.checks.counts[trouble.__name__[1:]] += 1
        self.kernel.note(f"trouble: {trouble.__name__[1:]} {host.name}")
        trouble(host)

    def _die(self, host: Host) -> None:
        """The machine is lost: for a while, its disk too, or for ever."""
        kernel, chance = self.kernel, self.kernel.random
        host.kill(machine=True)
        if chance.random() < 0.3:
            self.wiped = True
            host.wipe()
        living = sum(not host.gone for host in self.hosts.values())
        if chance.random() < 0.3 and living > 1:
            host.gone = True
        else:
            kernel.after(kernel.delay(0.5, 60.0), host.boot)

    def _crash(self, host: Host) -> None:
        """The Box is killed, and what it made runs on."""
        host.kill(machine=False)
        self.kernel.after(self.kernel.delay(0.1, 60.0), host.boot)

    def _freeze(self, host: Host) -> None:
        host.freeze(self.kernel.delay(1.0, 60.0))

    def _cut(self, host: Host) -> None:
        host.cut()
        self.kernel.after(self.kernel.delay(0.5, 60.0), host.heal)

    def _one_ends(self, host: Host) -> None:
        host.crash_one()

    def _order(self, host: Host) -> None:
        """An operator cordons or drains the host, or takes that back."""
        chance = self.kernel.random
        if self.checks.restoring:
            return  # the Boxes answer "not ready"
        if not self._lift(host):
            order = HostOrder(draining=chance.random() < 0.5, forced=chance.random() < 0.3)
            self._say(host, order)

    def _lift(self, host: Host) -> bool:
        """Whether there was an order for the host, which there is no more."""
        order = self.buckets["admin"].get(cordon_key(host.name), self.kernel.now)
        if order is None or order.lifted:
            return False
        self._say(host, HostOrder(lifted=True))
        return True

    def _say(self, host: Host, order: HostOrder) -> None:
        bucket, key = self.buckets["admin"], cordon_key(host.name)
        before = bucket.get(key, self.kernel.now)
        order = replace(order, version=before.version + 1 if before else 1)
        self.checks.ordered(host, order)
        bucket.write(key, encode(order), {}, self.kernel.now)

    def _outage(self, _: Host) -> None:
        """The server is away for longer than a lease, and many Boxes come back later still."""
        kernel, chance = self.kernel, self.kernel.random
        away, late = chance.uniform(1, 2 * self.lease), chance.uniform(0, 2 * self.lease)
        self.bus.down_until = kernel.now + away
        for group in self._groups:
            group.view.lost()
            kernel.after(away, group.view.resync)
        for host in self.hosts.values():
            if host.frozen:
                host.hang_up()
            elif not host.is_cut:
                host.cut()
                again = chance.random() + chance.choice([0.0, late])
                kernel.after(away + again, host.heal)

    def _lose(self, _: Host) -> None:
        """The server comes back with an empty store, or with an older one."""
        kernel, chance = self.kernel, self.kernel.random
        sound = [host for host in self.hosts.values() if not host.in_trouble]
        older = chance.random() < 0.5
        away = chance.uniform(0.1, 5.0)
        for group in self._groups:
            group.view.lost()
            kernel.after(away, group.view.resync)
        self.bus.down_until = kernel.now + away
        for host in self.hosts.values():
            if host.frozen:
                host.hang_up()
            elif not host.is_cut:
                host.cut(noticed=0.0)
                kernel.after(away + chance.uniform(0, 1.0), host.heal)
        for bucket in self.buckets.values():
            bucket.lose(older=older)
        self.checks.on_loss([host.kept for host in sound])
