"""`scale`: set how many instances a service has, and with --wait follow them until Ready."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.text import Text

from bridge.cli.exit_codes import DONE, FAILED, PARTLY
from bridge.cli.flags import LONGEST, Json, Link, ServiceName, parse_pairs
from bridge.console import err, instances_table, notices, out, print_json
from bridge.errors import ConfigError
from bridge.protocol import U32_MAX, InstancesResponse, ScaleConfig, ScaleResponse

_U8 = Number(gte=0, lte=255)
_U32 = Number(gte=0, lte=U32_MAX)


async def scale(
    service: ServiceName,
    replicas: Annotated[int, Parameter(validator=_U32, help="The number of instances.")],
    /,
    *,
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
    wait: Annotated[
        bool,
        Parameter(
            negative="", help="Return when gateways route to the instances, and to no other."
        ),
    ] = False,
    timeout: Annotated[
        float | None,
        Parameter(
            validator=Number(gt=0, lte=LONGEST),
            help="Seconds for the whole verb. Default: 10, or 120 with --wait.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Show what the request would do; change nothing.")
    ] = False,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Set the number of instances of a service.

    Without --replace-config a flag that is not given leaves that override as it
    is. Instances whose config changes are replaced one at a time. If the fleet has
    room for fewer instances, the service gets these, --wait waits for them, and
    the exit code is 4. Ctrl-C takes no request back. For example:

        box-bridge scale web 3 --wait
        box-bridge scale web 3 --memory-mib 256 --env LEVEL=debug
        box-bridge scale shop 2 --image nginx:1.27 --port 0:80
        box-bridge scale web 0
    """
    from bridge.cli.connect import connect
    from bridge.cli.known_names import service_names
    from bridge.cli.progress import Progress
    from bridge.gateway.client import ScaleClient
    from bridge.gateway.errors import ScaleCapped, ScaleRefused
    from bridge.gateway.requests import new_request_id

    config = ScaleConfig(
        image=image,
        vcpus=vcpus,
        memory_mib=memory_mib,
        env=parse_pairs("--env", env),
        port_map=_check_ports(port or []),
    )
    request_id = request_id or new_request_id()
    latest: InstancesResponse | None = None
    capped: ScaleCapped | None = None
    waiting = Progress(f"{service}: asking for {replicas}", quiet=json or not wait)
    async with connect(link, "scale") as connection:
        client = ScaleClient(connection)
        limit = timeout or (120.0 if wait else 10.0)
        left = _countdown(limit)

        def show(seen: InstancesResponse) -> None:
            nonlocal latest
            latest = seen
            waiting.show(_progress(service, replicas, seen))

        with _interruption(service, request_id, json=json), waiting:
            try:
                as_refused = json or image is not None
                async with service_names(connection, service, as_refused=as_refused):
                    response = await client.scale(
                        service,
                        replicas,
                        config=config,
                        replace_config=replace_config,
                        dry_run=dry_run,
                        wait=wait,
                        timeout=limit,
                        request_id=request_id,
                        progress=show,
                    )
            except ScaleRefused as exc:
                return _print_refusal(service, exc.response, json)
            except ScaleCapped as exc:
                capped, response = exc, exc.response
                if wait and not dry_run:
                    target = response.target_replicas
                    await client.wait_ready(service, target, timeout=left(), progress=show)
        code = DONE if capped is None else PARTLY
        if json:
            print_json(response)
            return code
        verb = "would be scaled" if dry_run else "scaled"
        count = f"{response.target_replicas}" + (f" of {replicas}" if capped else "")
        out.print(f"{service} {verb} to {count} (request {response.request_id})")
        if capped is not None:
            err.print(Text(f"{service}: {capped}", style="red"))
        if latest is not None:  # the Box that answers now may not have seen these instances yet
            _print_instances(latest)
        elif response.instances or (response.target_replicas and not dry_run):
            seen = await client.observe(service)
            _print_instances(_answered(service, response, seen, dry_run=dry_run))
    return code


def _countdown(seconds: float) -> Callable[[], float]:
    """The seconds that are left of `seconds` from now, at least a tenth."""
    until = time.monotonic() + seconds
    return lambda: max(0.1, until - time.monotonic())


def _check_ports(port: list[str]) -> list[str]:
    for item in port:
        if re.fullmatch(r"\d{1,5}:\d{1,5}", item) is None:
            raise ConfigError("--port", f"takes HOST:GUEST, e.g. `0:80`, not {item!r}")
    return port


@contextlib.contextmanager
def _interruption(service: str, request_id: str, *, json: bool) -> Iterator[None]:
    """On Ctrl-C print that the request stands, because it is not taken back."""
    import asyncio

    try:
        yield
    except asyncio.CancelledError:
        if not json:
            err.print(
                f"The request {request_id} stands if a Box has accepted it: see "
                f"`box-bridge services` and `box-bridge history {service}`."
            )
        raise


def _print_refusal(service: str, response: ScaleResponse, json: bool) -> int:
    if json:
        print_json(response)
    else:
        err.print(Text(f"{service}: ", style="red").append(response.error or "refused"))
    return FAILED


def _answered(
    service: str, response: ScaleResponse, seen: InstancesResponse, *, dry_run: bool
) -> InstancesResponse:
    """The instances that the answer names and, unless nothing changed, what the service lacks."""
    missing = seen.notices.get(service)
    return InstancesResponse(
        total=len(response.instances),
        instances=response.instances,
        hosts=seen.hosts,
        notices={service: missing} if missing and not dry_run else {},
    )


def _print_instances(seen: InstancesResponse) -> None:
    if seen.instances:
        out.print(instances_table(seen))
    for line in notices(seen):
        out.print(line)


def _progress(service: str, replicas: int, seen: InstancesResponse) -> str:
    counts = Counter(str(info.state) for info in seen.instances)
    states = ", ".join(f"{count} {state}" for state, count in counts.items()) or "none yet"
    missing = seen.notices.get(service, "")
    return f"{service}: {states}; {replicas} wanted" + (f": {missing}" if missing else "")
