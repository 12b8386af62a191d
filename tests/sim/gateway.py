"""A simulated gateway: it asks, and asks again elsewhere until it has an answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from bridge.box.scheduler.admission import Admission, AdmissionRequest
from bridge.protocol import ScaleConfig, ScaleRequest
from bridge.reply_codes import ReplyCode
from tests.sim.kernel import Process

if TYPE_CHECKING:
    from tests.sim.world import World

_EXPIRY: Final = 4.0  # seconds after which a request has no effect
_TRIES: Final = 6


class Gateway:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._process = Process("gateway")

    def ask_something(self) -> None:
        """Ask for some number of some service, now and then with another config."""
        if self._world.calm:
            return
        chance = self._world.kernel.random
        service = chance.choice(self._world.services)
        usual = max(1, self._world.size.instances // len(self._world.services))
        config = ScaleConfig()
        if usual <= 8 and chance.random() < 0.2:
            config = ScaleConfig(env={"V": str(chance.randint(1, 3))})
        replicas = chance.choice([0, usual // 2, usual, usual + 1, 2 * usual])
        self.ask(service, replicas, config)

    def ask(self, service: str, replicas: int, config: ScaleConfig | None = None) -> None:
        """Ask for `replicas`, at times twice at once, as a request that is sent again is."""
        request = ScaleRequest(
            service=service,
            replicas=replicas,
            config=config or ScaleConfig(),
            request_id=self._world.new_id("r"),
        )
        twice = self._world.kernel.random.random() < 0.2
        for _ in range(2 if twice else 1):
            self._world.kernel.spawn(self._process, self._asking(request))

    async def _asking(self, request: ScaleRequest) -> None:
        """What a gateway does: ask, and ask again somewhere until there is an answer."""
        answers: list[Admission] = []

        def got(answer: Admission) -> None:
            answers.append(answer)
            self._world.checks.replied(request, answer)

        for _ in range(_TRIES):
            self._send(request, got)
            await self._world.kernel.sleep(self._world.kernel.random.uniform(1, 6))
            if answers and answers[-1].code in (None, ReplyCode.CAPPED):
                return

    def _send(self, request: ScaleRequest, got: Callable[[Admission], None]) -> None:
        kernel = self._world.kernel
        there = [
            h for h in self._world.hosts.values() if h.life is not None and h.life.link.reachable
        ]
        if not there or self._world.bus.lost():
            return
        host = kernel.random.choice(there)
        life = host.life
        assert life is not None

        def reply(answer: Admission) -> None:
            if life.link.reachable and not self._world.bus.lost():
                kernel.after(self._world.bus.delay(), lambda: got(answer))

        asked = AdmissionRequest(
            request=request,
            host=host.name,
            at=kernel.wall(),
            expires_at=kernel.wall() + timedelta(seconds=_EXPIRY),
        )
        kernel.after(
            self._world.bus.delay(),
            lambda: kernel.act(life.link, lambda: life.spawn(life.answer(asked, reply))),
        )
