"""`scale`: set how many instances a service has, and with --wait follow them until Ready."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.text import Text

from bridge.cli.exit_codes import DONE, FAILED
from bridge.cli.flags import LONGEST, Json, Link, ServiceName, parse_pairs
from bridge.console import err, instances_table, notices, out, print_json
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
    is. Instances whose config changes are replaced one at a time. For example:

        box-bridge scale web 3 --wait
        box-bridge scale web 3 --memory-mib 256 --env LEVEL=debug
        box-bridge scale shop 2 --image nginx:1.27 --port 0:80
        box-bridge scale web 0
    """
    from bridge.cli.connect import connect
    from bridge.cli.progress import Progress
    from bridge.gateway.client import ScaleClient
    from bridge.gateway.errors import ScaleCapped, ScaleRefused

    config = ScaleConfig(
        image=image,
        vcpus=vcpus,
        memory_mib=memory_mib,
        env=parse_pairs("--env", env),
        port_map=port or [],
    )
    latest: InstancesResponse | None = None
    async with connect(link, "scale") as connection:
        client = ScaleClient(connection)
        with Progress(f"{service}: asking for {replicas}", quiet=json or not wait) as progress:

            def show(seen: InstancesResponse) -> None:
                nonlocal latest
                latest = seen
                progress.show(_progress(service, replicas, seen))

            try:
                response = await client.scale(
                    service,
                    replicas,
                    config=config,
                    replace_config=replace_config,
                    dry_run=dry_run,
                    wait=wait,
                    timeout=timeout,
                    request_id=request_id,
                    progress=show,
                )
            except (ScaleRefused, ScaleCapped) as exc:
                return _print_refusal(service, exc.response, json)
        if json:
            print_json(response)
            return DONE
        verb = "would be scaled" if dry_run else "scaled"
        out.print(f"{service} {verb} to {response.target_replicas} (request {response.request_id})")
        if latest is not None:  # the Box that answers now may not have seen these instances yet
            _print_instances(latest)
        elif response.instances or (response.target_replicas and not dry_run):
            seen = await client.observe(service)
            _print_instances(_answered(service, response, seen, dry_run=dry_run))
    return DONE


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
