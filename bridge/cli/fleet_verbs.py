"""The verbs of an operator: the hosts, emptying them, spreading what they run, and asking why."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from bridge.admin_protocol import MAX_WORDS
from bridge.cli.exit_codes import FAILED
from bridge.cli.flags import Json, Link
from bridge.gateway.errors import OrderRefused
from bridge.protocol import U32_MAX

_HOST = Parameter(help="The host, as `box-bridge hosts` names it.")
_SERVICE = Parameter(help="The service, as a Box's configuration names it.")
HostName = Annotated[str, _HOST]
ServiceName = Annotated[str, _SERVICE]


def _short(_: object, reason: str) -> None:
    if len(reason) > MAX_WORDS:
        raise ValueError(f"Must have {MAX_WORDS} letters at most, not {len(reason)}.")


Reason = Annotated[
    str, Parameter(validator=_short, help="Why; kept with the order and shown by `hosts`.")
]
Timeout = Annotated[
    float, Parameter(validator=Number(gt=0, lte=86400), help="Seconds to wait at most.")
]
Watch = Annotated[
    bool, Parameter(name=["--watch", "-w"], negative="", help="Keep looking, until Ctrl-C.")
]


def _carried_out(verb: Coroutine[Any, Any, int], *, json: bool) -> int:
    """The verb's exit code; with `json` a refusal is printed as what the Box answered."""
    try:
        return asyncio.run(verb)
    except OrderRefused as exc:
        if not json:
            raise
        from bridge.console import print_json

        print_json(exc.response)
        return FAILED


def hosts(
    *,
    watch: Watch = False,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """List the fleet's hosts: what each runs, what room it has, and what is ordered for it.

    A dead host is listed while it still holds slots or an order. For example:

        box-bridge hosts
        box-bridge hosts --json | jq '.hosts[] | select(.used == 0).name'
    """
    from bridge.cli.commands.hosts import run_hosts

    return _carried_out(run_hosts((link or Link()).flags(), watch=watch, json=json), json=json)


def services(
    *,
    watch: Watch = False,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """List the fleet's services: how many instances are wanted and there, what is missing and why.

    One that hosts offer and nobody has asked for is listed too. For example:

        box-bridge services
        box-bridge services --json | jq '.services[] | select(.ready + .busy < .wanted).name'
    """
    from bridge.cli.commands.services import run_services

    return _carried_out(run_services((link or Link()).flags(), watch=watch, json=json), json=json)


def cordon(
    host: HostName,
    /,
    *,
    force: Annotated[
        bool, Parameter(negative="", help="Also a host that is yet to come, or is long gone.")
    ] = False,
    reason: Reason = "",
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Have nothing placed on a host from now on; what it runs stays there.

    It lasts until `uncordon`, also over restarts of the Box. For example:

        box-bridge cordon box-a --reason "disk is failing"
    """
    from bridge.cli.commands.orders import run_cordon

    flags = (link or Link()).flags()
    return _carried_out(run_cordon(host, flags, reason=reason, force=force, json=json), json=json)


def uncordon(host: HostName, /, *, link: Link | None = None, json: Json = False) -> int:
    """Take back a cordon or a drain: the host is given instances again.

    What has moved away does not come back by itself; `rebalance` does that. For example:

        box-bridge uncordon box-a
    """
    from bridge.cli.commands.orders import run_uncordon

    return _carried_out(run_uncordon(host, (link or Link()).flags(), json=json), json=json)


def drain(
    host: HostName,
    /,
    *,
    timeout: Timeout = 600.0,
    force: Annotated[
        bool,
        Parameter(negative="", help="End instances for which there is no room elsewhere, too."),
    ] = False,
    reason: Reason = "",
    wait: Annotated[
        bool, Parameter(name="--wait", negative="--no-wait", help="Return when it is empty.")
    ] = True,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Empty a host: each instance is replaced elsewhere, and Ready there before it drains.

    Refused when the other hosts have no room. The host stays cordoned until `uncordon`. Ctrl-C,
    and a wait that takes too long, leave the order in place; draining again goes on from there.
    For example, before maintenance:

        box-bridge drain box-a --reason "new kernel" && ssh box-a reboot
        box-bridge uncordon box-a
    """
    from bridge.cli.commands.orders import run_drain

    flags = (link or Link()).flags()
    return _carried_out(
        run_drain(host, flags, timeout=timeout, force=force, reason=reason, wait=wait, json=json),
        json=json,
    )


def rebalance(
    service: Annotated[str, Parameter(help="One service; all of them if left out.")] = "",
    /,
    *,
    dry_run: Annotated[bool, Parameter(negative="", help="Show the moves, make none.")] = False,
    wait: Annotated[bool, Parameter(negative="", help="Return when the moves are made.")] = False,
    timeout: Timeout = 600.0,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Even out the hosts with the fewest moves; each instance is replaced before it drains.

    Nothing moves by itself because a host has joined or come back: this is how. For example:

        box-bridge rebalance --dry-run
        box-bridge rebalance web --wait
    """
    from bridge.cli.commands.orders import run_rebalance

    flags = (link or Link()).flags()
    return _carried_out(
        run_rebalance(service, flags, dry_run=dry_run, wait=wait, timeout=timeout, json=json),
        json=json,
    )


def history(service: ServiceName, /, *, link: Link | None = None, json: Json = False) -> int:
    """Show who asked what of a service, when, what was decided, and why less than was asked.

    The last 64 decisions, steps of rollouts too, and before them the last 24 requests that are
    older. For example:

        box-bridge history web
    """
    from bridge.cli.commands.why import run_history

    return _carried_out(run_history(service, (link or Link()).flags(), json=json), json=json)


def plan(
    service: ServiceName,
    replicas: Annotated[
        int,
        Parameter(validator=Number(gte=0, lte=U32_MAX), help="How many instances it should have."),
    ],
    /,
    *,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Explain what scaling would do: which instances come and go where, and which hosts cannot.

    Nothing is changed. The exit code says 1 where the request would be refused or capped. For
    example:

        box-bridge plan web 12
    """
    from bridge.cli.commands.why import run_plan

    return _carried_out(run_plan(service, replicas, (link or Link()).flags(), json=json), json=json)
