"""The order of instances by age, against sorting them anew after every change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.box.state import age_order
from bridge.box.state.age_order import AgeOrder, Place
from bridge.box.state.fleet_index import FleetIndex
from bridge.box.state.lifecycle import ENDED
from bridge.box.state.records import SlotRecord
from bridge.protocol import InstanceState
from tests.unit.fleets import slot

_STATES = (InstanceState.READY, InstanceState.BOOTING, InstanceState.STOPPED)
_CHANGE = st.tuples(
    st.sampled_from(["web", "api"]),
    st.integers(0, 5),
    st.one_of(st.none(), st.tuples(st.sampled_from(_STATES), st.integers(0, 9))),
)
_READ = st.sampled_from(["", "web", "api"])


def _expected(index: FleetIndex, service: str) -> list[Place]:
    return sorted(
        (claim.info.created_at, claim.info.id, name, number)
        for name, claims in index.state.slots.items()
        for number, claim in claims.items()
        if service in ("", name) and claim.info.state not in ENDED
    )


@pytest.mark.parametrize("few", [0, 100])
@given(steps=st.lists(st.one_of(_CHANGE, _READ), max_size=60))
def test_the_order_after_any_changes_is_that_of_sorting_all(
    few: int, steps: list[tuple[str, int, tuple[InstanceState, int] | None] | str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(age_order, "_SMALL", 1)
        patch.setattr(age_order, "_FEW", few)
        index = FleetIndex()
        order = index.state.slot_index.age_order
        for step in steps:
            if isinstance(step, str):
                assert order.places(step) == _expected(index, step)
                continue
            service, number, kind = step
            claim = None if kind is None else slot(service, number, kind[0], age=kind[1])
            index.set_slot(service, number, claim)
        for service in ("", "web", "api"):
            assert order.places(service) == _expected(index, service)


def test_a_service_without_instances_leaves_no_order_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(age_order, "_SMALL", 1)
    slots: dict[str, dict[int, SlotRecord]] = {"web": {0: slot("web", 0)}}
    order = AgeOrder(slots)
    assert order.places("web")
    before = slots["web"].pop(0)
    order.slot_changed("web", 0, before, None)
    assert not order._services
    assert order.places("web") == []
