"""`scale`: set how many instances services have, and with --wait follow them until Ready."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from bridge.cli.flags import (
    Json,
    Link,
    RequestTimeout,
    WaitForIt,
    complete_services,
    parse_pairs,
)
from bridge.cli.output import DataOutput, Style
from bridge.errors import ConfigError
from bridge.protocol import U32_MAX, ScaleConfig
from bridge.subjects import check_name

_U8 = Number(gte=0, lte=255)
_U32 = Number(gte=0, lte=U32_MAX)
_USAGE = "`box-bridge scale SERVICE REPLICAS`"


async def scale(
    *target: Annotated[
        str,
        Parameter(
            completer=complete_services,
            help="SERVICE REPLICAS, or SERVICE=REPLICAS for several services.",
        ),
    ],
    replicas: Annotated[
        int | None,
        Parameter(
            name=["--replicas", "-n"],
            validator=_U32,
            help="The number of instances of each SERVICE that is named without one.",
        ),
    ] = None,
    image: Annotated[str | None, Parameter(help="OCI image, which the hosts must allow.")] = None,
    vcpus: Annotated[
        int | None, Parameter(validator=_U8, help="Processors of each instance.")
    ] = None,
    memory_mib: Annotated[
        int | None, Parameter(validator=_U32, help="Memory of each instance, in MiB.")
    ] = None,
    env: Annotated[
        list[str] | None, Parameter(negative="", help="KEY=VALUE; may be given again.")
    ] = None,
    port: Annotated[
        list[str] | None, Parameter(negative="", help="HOST:GUEST; may be given again.")
    ] = None,
    replace_config: Annotated[
        bool, Parameter(negative="", help="The flags above state the whole config.")
    ] = False,
    request_id: Annotated[
        str | None, Parameter(help="The id of an earlier request, to repeat it without effect.")
    ] = None,
    wait: WaitForIt = False,
    timeout: RequestTimeout = None,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Show what the request would do; change nothing.")
    ] = False,
    link: Link | None = None,
    json: Json = False,
    output: DataOutput = None,
) -> int:
    """Set the number of instances of a service.

    Without --replace-config a flag that is not given leaves that override as it
    is. Instances whose config changes are replaced one at a time. If the fleet has
    room for fewer instances, the service gets these, --wait waits for them, and
    the exit code is 4. Several services are independent of each other: JSON has a
    line for each. Ctrl-C takes no request back. For example:

        box-bridge scale web 3 --wait
        box-bridge scale web=3 api=2
        box-bridge scale web 3 --memory-mib 256 --env LEVEL=debug
        box-bridge scale shop 2 --image nginx:1.27 --port 0:80
        box-bridge scale web --replicas 0
    """
    from bridge.cli.connect import connect
    from bridge.cli.scaling import ScaleOptions, scale_services

    targets = _parse_targets(target, replicas)
    if request_id and len(targets) > 1:
        raise ConfigError("--request-id", "belongs to one request: scale one service with it")
    options = ScaleOptions(
        style=Style.of(output, json=json),
        config=ScaleConfig(
            image=image,
            vcpus=vcpus,
            memory_mib=memory_mib,
            env=parse_pairs("--env", env),
            port_map=_check_ports(port or []),
        ),
        replace_config=replace_config,
        request_id=request_id,
        wait=wait,
        limit=timeout or (120.0 if wait else 10.0),
        dry_run=dry_run,
    )
    async with connect(link, "scale") as connection:
        return await scale_services(connection, targets, options)


def _parse_targets(words: Sequence[str], replicas: int | None) -> Mapping[str, int]:
    """The number of each service. Raises ConfigError and NameRefused."""
    if not words:
        raise ConfigError("SERVICE is missing", _USAGE)
    targets: dict[str, int] = {}
    left = list(words)
    while left:
        service, equals, number = left.pop(0).partition("=")
        if not equals and replicas is None:
            if not left:
                raise ConfigError("REPLICAS is missing", _USAGE)
            number = left.pop(0)
        count = replicas if not equals and replicas is not None else _parse_count(number)
        if targets.setdefault(check_name("service", service), count) != count:
            raise ConfigError(service, f"cannot have {targets[service]} and {count} instances")
    return targets


def _parse_count(text: str) -> int:
    try:
        count = int(text)
        _U32(int, count)
    except ValueError as exc:
        known = re.fullmatch(r"Must be .*", str(exc))
        problem = str(exc) if known else f'unable to convert "{text}" into int; {_USAGE}'
        raise ConfigError("REPLICAS", f"{text!r}: {problem}") from exc
    return count


def _check_ports(port: list[str]) -> list[str]:
    for item in port:
        if re.fullmatch(r"\d{1,5}:\d{1,5}", item) is None:
            raise ConfigError("--port", f"takes HOST:GUEST, e.g. `0:80`, not {item!r}")
    return port
