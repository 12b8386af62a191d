"""Scale requests of a verb: sent for several services at once, waited for, and printed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from msgspec import Struct
from rich.text import Text

from bridge.bus.core.connection import Connection
from bridge.cli.exit_codes import DONE, FAILED, INTERRUPTED, PARTLY, UNANSWERED, USAGE, exit_code
from bridge.cli.known_names import service_names
from bridge.cli.output import Style
from bridge.cli.progress import Progress
from bridge.console import err, instances_table, notices, out
from bridge.errors import BridgeError
from bridge.gateway.client import ScaleClient
from bridge.gateway.errors import ScaleCapped, ScaleRefused
from bridge.gateway.requests import new_request_id
from bridge.protocol import InstancesResponse, ScaleConfig, ScaleResponse
from bridge.tasks import task_scope

_WORST: Final = (INTERRUPTED, USAGE, FAILED, UNANSWERED, PARTLY, DONE)


class ScaleOptions(Struct, frozen=True, kw_only=True):
    """What applies to each of the requests of one verb; `limit` in seconds."""

    style: Style
    config: ScaleConfig = ScaleConfig()
    replace_config: bool = False
    request_id: str | None = None
    wait: bool = False
    limit: float = 10.0
    dry_run: bool = False


class _Answer(Struct, frozen=True):
    """What a Box granted of `replicas`; `latest` is what a wait saw last."""

    response: ScaleResponse
    replicas: int
    capped: ScaleCapped | None
    latest: InstancesResponse | None


_Show = Callable[[str, str], None]
"""Shows the progress of a service."""


async def scale_services(
    connection: Connection, targets: Mapping[str, int], options: ScaleOptions
) -> int:
    """Scale each service to its number, all at once; returns the worst exit code.

    An error about the only service is raised. One about several is printed, and the others go on.
    """
    lines = dict.fromkeys(targets, "asking")
    quiet = options.style.for_programs or not options.wait
    with Progress(_joined(lines), quiet=quiet) as progress:

        def show(service: str, line: str) -> None:
            lines[service] = line
            progress.show(_joined(lines))

        if len(targets) == 1:
            [(service, replicas)] = targets.items()
            answer = await _scale(connection, service, replicas, options, show)
            answers = {service: answer}
        else:
            answers = await _scale_all(connection, targets, options, show)
    codes = [
        answer
        if isinstance(answer, int)
        else await _print_answer(connection, service, answer, options)
        for service, answer in answers.items()
    ]
    return min(codes, key=_WORST.index)


async def _scale_all(
    connection: Connection, targets: Mapping[str, int], options: ScaleOptions, show: _Show
) -> dict[str, _Answer | int]:
    """The answer for each service, or the exit code of an error, which is printed."""

    async def scale(service: str, replicas: int) -> _Answer | int:
        try:
            return await _scale(connection, service, replicas, options, show)
        except BridgeError as exc:
            err.print(Text(f"{service}: ", style="red").append(str(exc)))
            return exit_code(exc)

    async with task_scope() as tasks:
        running = {
            service: tasks.create_task(scale(service, replicas), name=service)
            for service, replicas in targets.items()
        }
        return {service: await task for service, task in running.items()}


async def _scale(
    connection: Connection, service: str, replicas: int, options: ScaleOptions, show: _Show
) -> _Answer | int:
    """Send the request, and wait if that is wanted. Raises BridgeError.

    A refusal is printed, and its exit code returned.
    """
    client, style = ScaleClient(connection), options.style
    request_id = options.request_id or new_request_id()
    latest: InstancesResponse | None = None
    left = _countdown(options.limit)

    def observe(seen: InstancesResponse) -> None:
        nonlocal latest
        latest = seen
        show(service, _progress(service, replicas, seen))

    with _interruption(service, request_id, quiet=style.for_programs):
        try:
            as_refused = style.for_programs or options.config.image is not None
            async with service_names(connection, service, as_refused=as_refused):
                response = await client.scale(
                    service,
                    replicas,
                    config=options.config,
                    replace_config=options.replace_config,
                    dry_run=options.dry_run,
                    wait=options.wait,
                    timeout=options.limit,
                    request_id=request_id,
                    progress=observe,
                )
        except ScaleRefused as exc:
            return _print_refusal(service, exc.response, style)
        except ScaleCapped as exc:
            if options.wait and not options.dry_run:
                target = exc.response.target_replicas
                await client.wait_ready(service, target, timeout=left(), progress=observe)
            return _Answer(exc.response, replicas, exc, latest)
    return _Answer(response, replicas, None, latest)


async def _print_answer(
    connection: Connection, service: str, answer: _Answer, options: ScaleOptions
) -> int:
    """Print what was granted, and the instances; returns the exit code."""
    response, capped = answer.response, answer.capped
    code = DONE if capped is None else PARTLY
    if options.style.print_data(response):
        return code
    verb = "would be scaled" if options.dry_run else "scaled"
    count = f"{response.target_replicas}" + (f" of {answer.replicas}" if capped else "")
    out.print(f"{service} {verb} to {count} (request {response.request_id})")
    if capped is not None:
        err.print(Text(f"{service}: {capped}", style="red"))
    if answer.latest is not None:  # the Box that answers now may not have seen these instances yet
        _print_instances(answer.latest)
    elif response.instances or (response.target_replicas and not options.dry_run):
        seen = await ScaleClient(connection).observe(service)
        _print_instances(_answered(service, response, seen, dry_run=options.dry_run))
    return code


def _joined(lines: Mapping[str, str]) -> str:
    return "; ".join(f"{service}: {line}" for service, line in lines.items())


def _countdown(seconds: float) -> Callable[[], float]:
    """The seconds that are left of `seconds` from now, at least a tenth."""
    until = time.monotonic() + seconds
    return lambda: max(0.1, until - time.monotonic())


@contextlib.contextmanager
def _interruption(service: str, request_id: str, *, quiet: bool) -> Iterator[None]:
    """On Ctrl-C print that the request stands, because it is not taken back."""
    try:
        yield
    except asyncio.CancelledError:
        if not quiet:
            err.print(
                f"The request {request_id} stands if a Box has accepted it: see "
                f"`box-bridge services` and `box-bridge history {service}`."
            )
        raise


def _print_refusal(service: str, response: ScaleResponse, style: Style) -> int:
    if not style.print_data(response):
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
    return f"{states}; {replicas} wanted" + (f": {missing}" if missing else "")
