"""Simulated hosts, and their faults: deaths, freezes, cuts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.box.scheduler import placement
from bridge.box.state.lifecycle import SERVING
from bridge.box.state.records import Demand, HostRecord, Offer, ServiceRecord
from tests.sim.box import BoxLife
from tests.sim.instances import SlotInstance
from tests.sim.view import Kept, Link

if TYPE_CHECKING:
    from tests.sim.world import World

_SILENCE = 2.2  # seconds: `bridge.bus.jetstream.follower`
_NOTICED = 6.0  # seconds within which either side of a dead connection gives it up


class Host:
    """A machine: what is on its disk, what runs on it, and its Box while that lives."""

    def __init__(
        self, world: World, name: str, services: dict[str, Offer], room: int, cpus: int, zone: str
    ) -> None:
        self.world = world
        self.name = name
        self.services = services
        self.room = room
        self.host_id = f"{name}-0"
        self.journal: dict[str, SlotInstance] = {}
        self.running: set[str] = set()
        self.life: BoxLife | None = None
        self.gone = False
        self.calm_from = 0.0
        self._private = Kept()
        self._cpus = cpus
        self._labels = {"zone": zone}
        self._told: dict[str, HostRecord] = {}
        self._lives = 0
        self._cuts = 0
        self._cut = False

    @property
    def kept(self) -> Kept:
        """The newest version of each service's record that this host has journaled."""
        return self._private if self.world.private else self.world.group_of(self).kept

    @property
    def in_trouble(self) -> bool:
        """Whether its Box is dead, frozen, cut off, or on its way back."""
        life = self.life
        return self._cut or life is None or life.link.frozen or not life.may_plan()

    def record(self) -> HostRecord:
        """The record of itself that it writes for the fleet."""
        told = self._told.get(self.host_id)
        if told is None:
            told = HostRecord(
                host_id=self.host_id,
                runtime="process",
                cpus=self._cpus,
                max_instances=self.room,
                services=self.services,
                labels=self._labels,
            )
            self._told = {self.host_id: told}
        return told

    def demand(self, record: ServiceRecord) -> Demand:
        """What an instance has of this host."""
        return Demand.of(record.config.vcpus, record.config.memory_mib)

    def offers(self, service: str, record: ServiceRecord) -> bool:
        """Whether it can run `service` as its record has it."""
        there = self.record()
        return service in self.services and not placement.run_blocker(service, there, record.config)

    # ── its instances ────────────────────────────────────────────────────────────────────

    def started(self, held: SlotInstance) -> None:
        """An instance runs from now on."""
        self.running.add(held.id)
        self.world.checks.runs(self, held)

    def ended(self, held: SlotInstance) -> None:
        """An instance runs no more."""
        self.running.discard(held.id)
        self.world.checks.stands_down(self, held)

    def crash_one(self) -> None:
        """An instance ends by itself, seen by a Box or not."""
        if self.life is not None:
            serving = [h for h in self.life.instances() if h.life.info.state in SERVING]
            if serving and not self.life.link.frozen:
                held = self.world.kernel.random.choice(serving)
                held.crashed = True
                self.ended(held)
                held.wake()
        elif self.running:
            self._end(self.world.kernel.random.choice(sorted(self.running)))

    def _end(self, instance: str) -> None:
        self.running.discard(instance)
        if (held := self.journal.get(instance)) is not None:
            self.world.checks.stands_down(self, held)

    # ── its Box ──────────────────────────────────────────────────────────────────────────

    def boot(self) -> None:
        """A life of its Box begins."""
        if self.life is not None or self.gone:
            return
        self._lives += 1
        link = Link(self.name, self.host_id)
        link.reachable = link.connected = not self._cut
        view = self.world.view_for(self, link)
        self.life = BoxLife(self, link, view)
        self.world.joined(self.life)
        if view.owner is not None and link.reachable:
            view.resync()
        self.life.spawn(self._life(self.life))
        self.world.kernel.note(f"{self.name} starts")

    async def _life(self, life: BoxLife) -> None:
        await life.start()
        self.world.checks.excuse(self)
        self.world.kernel.note(f"{self.name} is back")

    def kill(self, *, machine: bool) -> None:
        """Its Box dies; with the machine all that runs on it does."""
        if (life := self.life) is not None:
            life.link.alive = life.link.connected = False
            life.link.epoch += 1
            if life.view.owner is not None:
                life.view.close()
            self.world.left(life)
            self.life = None
        if machine:
            for instance in sorted(self.running):
                self._end(instance)

    def wipe(self) -> None:
        """Its data directory is lost; call it after the machine has died."""
        self.journal.clear()
        self._private.services.clear()
        self._private.orders.clear()
        self.host_id = f"{self.name}-{self._lives}"

    def freeze(self, seconds: float) -> None:
        """Its Box stands still so long; beyond some seconds the server hangs up on it."""
        life, kernel = self.life, self.world.kernel
        if life is None or life.link.frozen or self._cut:
            return
        life.link.frozen = True

        def hang_up() -> None:
            if life is self.life and life.link.frozen:
                self.hang_up()

        def thaw() -> None:
            if life is not self.life:
                return
            self.world.checks.excuse(self)
            kernel.note(f"{self.name} goes on")
            kernel.thaw(life.link)
            if self._cut:
                kernel.after(kernel.delay(0.01, 0.5), self.heal)

        kernel.after(_NOTICED, hang_up)
        kernel.after(seconds, thaw)

    def hang_up(self) -> None:
        """The server does not hear it any more, and it is frozen, so that it does not notice."""
        assert self.life is not None
        if not self._cut:
            self._cut = True
            self._cuts += 1
            self.life.link.reachable = False

    @property
    def is_cut(self) -> bool:
        """Whether nothing goes between it and the store."""
        return self._cut

    @property
    def frozen(self) -> bool:
        """Whether its Box stands still."""
        return self.life is not None and self.life.link.frozen

    def cut(self, noticed: float = 1.0) -> None:
        """Nothing goes between it and the store. `noticed` scales how late that is noticed."""
        if self._cut or (self.life is not None and self.life.link.frozen):
            return
        self._cut = True
        self._cuts += 1
        cuts, life, kernel = self._cuts, self.life, self.world.kernel
        if life is None:
            return
        life.link.reachable = False

        def same() -> bool:
            return self._cuts == cuts and self._cut and life is self.life

        def blind() -> None:
            if same() and life.view.owner is not None:
                life.view.lost()

        def hung_up() -> None:
            if same():
                self._disconnect(life)

        chance = kernel.random
        kernel.after(noticed * chance.uniform(0, _SILENCE), lambda: kernel.act(life.link, blind))
        kernel.after(noticed * chance.uniform(0, _NOTICED), lambda: kernel.act(life.link, hung_up))

    def _disconnect(self, life: BoxLife) -> None:
        if life.link.connected:
            life.link.connected = False
            life.link.epoch += 1
            if life.view.owner is not None:
                life.view.lost()
            life.on_connection()

    def heal(self) -> None:
        """What it sends arrives again."""
        if not self._cut:
            return
        self._cut = False
        life, kernel = self.life, self.world.kernel
        if life is None:
            return
        self._disconnect(life)
        life.link.reachable = True

        def back() -> None:
            if life is self.life and not self._cut:
                life.link.connected = True
                if life.view.owner is not None:
                    life.view.resync()
                life.on_connection()
                self.world.checks.excuse(self)
                kernel.note(f"{self.name} is connected again")

        kernel.after(kernel.delay(0.05, 1.5), lambda: kernel.act(life.link, back))
