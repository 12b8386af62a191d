"""Simulate fleets, many or one; exits 0 only if all promises held.

python -m tests.sim --seeds 200              # seeds 0 to 199, on all cores
python -m tests.sim --seed 17 --trace        # one seed, replayed exactly, with every step
python -m tests.sim --seed 3 --hosts 1000 --instances 100000
python -m tests.sim --seeds 9990 --full 10 --record sim.jsonl    # again, to go on after Ctrl-C
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Final

from tests.sim.checks import Violation
from tests.sim.kernel import Kernel
from tests.sim.planted import PLANTED, plant
from tests.sim.record import Record
from tests.sim.world import Size, World

_FULL: Final = (1_000, 100_000)
_SMALL: Final = (6, 24)


def size_of(seed: int, most: tuple[int, int], fixed: tuple[int, int]) -> Size:
    """The size of the fleet of `seed`, log-uniform up to `most`, unless it is `fixed`."""
    chance = Kernel(seed)
    troubled = chance.random.uniform(10, 90)  # the same whatever is fixed
    hosts = fixed[0] or chance.log_uniform(1, most[0])
    instances = fixed[1] or chance.log_uniform(1, most[1])
    return Size(hosts, min(instances, 500 * hosts), troubled)


def simulate(seed: int, size: Size, planted: str = "", *, trace: bool = False) -> dict[str, Any]:
    """What came of one seed; "violation" says what was broken, if anything."""
    logging.disable()
    gc.collect()
    gc.disable()  # there is much that lives, and few cycles: a fifth of the time otherwise
    began = time.perf_counter()
    undo = plant(planted)
    world = World(seed, size, trace=trace, planted=planted)
    result: dict[str, Any] = {"seed": seed, "hosts": size.hosts, "instances": size.instances}
    result["troubled"] = size.troubled
    try:
        world.run()
    except Violation as exc:
        result |= {"violation": str(exc), "last": list(world.kernel.last)}
    finally:
        undo()
    return result | {
        "events": world.kernel.events,
        "seconds": round(time.perf_counter() - began, 3),
        "simulated": round(world.kernel.now),
        "counts": dict(world.checks.counts),
    }


def main() -> int:
    """Run what the arguments say."""
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a run
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    warnings.filterwarnings("ignore", "coroutine 'BoxLife", RuntimeWarning)  # frozen at the end
    arguments = _arguments()
    fixed = arguments.hosts, arguments.instances
    if arguments.seed is not None:
        size = size_of(arguments.seed, (arguments.up_to_hosts, arguments.up_to_instances), fixed)
        result = simulate(arguments.seed, size, arguments.planted, trace=arguments.trace)
        _complain(result)
        print(json.dumps({key: value for key, value in result.items() if key != "last"}))
        return 1 if "violation" in result else 0
    return _many(arguments, fixed)


def _many(arguments: argparse.Namespace, fixed: tuple[int, int]) -> int:
    most = arguments.up_to_hosts, arguments.up_to_instances
    jobs = [
        (seed, size_of(seed, most, fixed))
        for seed in range(arguments.first, arguments.first + arguments.seeds)
    ]
    jobs += [
        (seed, Size(*_FULL, 30.0))
        for seed in range(arguments.first, arguments.first + arguments.full)
    ]
    jobs.sort(key=lambda job: job[1].instances * job[1].hosts)  # most is found by the short ones
    began, totals, failed = time.perf_counter(), Counter[str](), list[dict[str, Any]]()
    spent = 0.0
    for number, result in enumerate(_results(jobs, arguments), start=1):
        totals.update(result["counts"] | {"events": result["events"]})
        spent += result["seconds"]
        if "violation" in result:
            failed.append(result)
            _complain(result)
            if arguments.fail_fast:
                break
        if number % max(1, len(jobs) // 20) == 0:
            seconds = time.perf_counter() - began
            print(f"{number} of {len(jobs)}, {seconds:.0f} s", file=sys.stderr, flush=True)
    print(
        json.dumps(
            {
                "seeds": len(jobs),
                "full_size": arguments.full,
                "failed": sorted(result["seed"] for result in failed),
                "seconds": round(time.perf_counter() - began, 1),
                "worker_seconds": round(spent, 1),
                **dict(sorted(totals.items())),
            },
            indent=2,
        )
    )
    return 1 if failed else 0


def _results(
    jobs: list[tuple[int, Size]], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """What comes of each job, as it comes; in turn if the first may be the end. With a record,
    what is in there comes first, and is not run again.
    """
    if arguments.record is not None:
        record = Record(arguments.record)
        known = {job: result for job in jobs if (result := record.get(*job)) is not None}
        yield from known.values()
        for result in _run([job for job in jobs if job not in known], arguments):
            record.keep(result)
            yield result
    else:
        yield from _run(jobs, arguments)


def _run(jobs: list[tuple[int, Size]], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if arguments.fail_fast:
        yield from (simulate(*job, arguments.planted) for job in jobs)
        return
    with ProcessPoolExecutor(arguments.processes, initializer=_leave_signals) as pool:
        running = [pool.submit(simulate, *job, arguments.planted) for job in jobs]
        try:
            for future in as_completed(running):
                yield future.result()
        except BaseException:
            workers = list(pool._processes.values())
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.terminate()
            raise


def _leave_signals() -> None:
    """A signal ends the process that reports, which then ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _complain(result: dict[str, Any]) -> None:
    if "violation" not in result:
        return
    print(*result["last"], sep="\n", file=sys.stderr)
    print(
        f"seed {result['seed']}: {result['violation']}\n  again: python -m tests.sim --seed "
        f"{result['seed']} --hosts {result['hosts']} --instances {result['instances']} --trace",
        file=sys.stderr,
        flush=True,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--seed", type=int, help="this one seed")
    add("--seeds", type=int, default=200, help="so many seeds, beginning with --first")
    add("--first", type=int, default=0)
    add("--full", type=int, default=0, help="and so many at full size")
    add("--hosts", type=int, default=0, help="exactly so many hosts, not what the seed says")
    add("--instances", type=int, default=0)
    add("--up-to-hosts", type=int, default=_FULL[0], help="sizes are drawn up to this")
    add("--up-to-instances", type=int, default=_FULL[1])
    add("--processes", type=int, default=os.cpu_count())
    add("--planted", choices=["", *PLANTED], default="", help="put in a defect: it must be found")
    add("--fail-fast", action="store_true", help="end with the first that fails")
    add(
        "--record",
        type=Path,
        help="keep what came of each seed here, and run none again that is in it",
    )
    add("--trace", action="store_true", help="tell everything that happens")
    arguments = parser.parse_args()
    if arguments.record is not None and arguments.planted:
        parser.error("--record is for the code as it is, not with a defect put in")
    return arguments


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted (with --record, the same command goes on from here)")
