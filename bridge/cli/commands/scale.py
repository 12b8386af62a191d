"""`scale`: ask, and with --wait watch it come true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

from rich.status import Status
from rich.text import Text

from bridge.cli.connect import connected
from bridge.cli.exit_codes import DONE, FAILED
from bridge.console import err, instances_table, notices, out, print_json
from bridge.gateway.client import ScaleClient
from bridge.gateway.errors import ScaleCapped, ScaleRefused
from bridge.protocol import InstancesResponse, ScaleConfig, ScaleResponse


async def run_scale(
    service: str,
    replicas: int,
    config: ScaleConfig,
    flags: Mapping[str, Any],
    *,
    replace_config: bool,
    request_id: str | None,
    wait: bool,
    timeout: float | None,
    dry_run: bool,
    json: bool,
) -> int:
    """Ask, print the answer, and return the exit code."""
    async with connected(flags, "scale") as connection:
        client = ScaleClient(connection)
        with _Progress(service, replicas, quiet=json or not wait) as progress:
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
                    progress=progress.show,
                )
            except (ScaleRefused, ScaleCapped) as exc:
                return _not_as_asked(service, exc.response, json)
        if json:
            print_json(response)
            return DONE
        verb = "would be scaled" if dry_run else "scaled"
        out.print(f"{service} {verb} to {response.target_replicas} (request {response.request_id})")
        if progress.seen is not None:  # what was waited for; another Box may be a moment behind
            _show(progress.seen)
        elif response.instances or (response.target_replicas and not dry_run):
            _show_chosen(service, response, await client.observe(service), dry_run=dry_run)
    return DONE


def _not_as_asked(service: str, response: ScaleResponse, json: bool) -> int:
    if json:
        print_json(response)
    else:
        err.print(Text(f"{service}: ", style="red").append(response.error or "refused"))
    return FAILED


def _show_chosen(
    service: str, response: ScaleResponse, seen: InstancesResponse, *, dry_run: bool
) -> None:
    """What was there when it was answered; and, unless it was no more than a question, what the
    service lacks now.
    """
    lacks = seen.notices.get(service)
    listed = InstancesResponse(
        total=len(response.instances),
        instances=response.instances,
        hosts=seen.hosts,
        notices={service: lacks} if lacks and not dry_run else {},
    )
    if listed.instances or listed.notices:
        _show(listed)


def _show(seen: InstancesResponse) -> None:
    if seen.instances:
        out.print(instances_table(seen))
    for line in notices(seen):
        out.print(line)


class _Progress:
    """One line on the terminal that follows the instances; plain lines where there is none."""

    def __init__(self, service: str, replicas: int, *, quiet: bool) -> None:
        self._service = service
        self._replicas = replicas
        self._quiet = quiet
        self._last = ""
        self.seen: InstancesResponse | None = None
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if not self._quiet and err.is_terminal:
            self._status = err.status(f"{self._service}: asking for {self._replicas}")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, seen: InstancesResponse) -> None:
        """Tell how the instances stand, if that has changed."""
        self.seen = seen
        counts = Counter(str(info.state) for info in seen.instances)
        listed = ", ".join(f"{count} {state}" for state, count in counts.items()) or "none yet"
        lacks = seen.notices.get(self._service, "")
        line = f"{self._service}: {listed}; {self._replicas} wanted" + (
            f": {lacks}" if lacks else ""
        )
        if self._quiet or line == self._last:
            return
        self._last = line
        if self._status is not None:
            self._status.update(line)
        else:
            err.print(line)
