"""More calls than one worker can answer: those it takes keep their pace, the others are told at once to come back.

First the calls a second that the worker sustains: the most in an open loop of which it answers 99 %, found downwards
from what a closed loop of 8 gets. Then an open loop at 1.3 times that. The worker has a core of its own; the generator,
and Redis, have the other one.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

from benchmarks import world
from benchmarks.generator import Load, Outcome, generate
from benchmarks.measure import Measured, Result, Setting, Unequal
from benchmarks.servers import redis_server
from benchmarks.worker import pinned, two_cores, worker
from benchmarks.world import Shape
from featurestore_client import calls

NAME = "shedding"
WHAT = "one worker at 1.3x the calls/s that it sustains: p99 of what it takes, and what it turns away"
OVERLOAD = 1.3
#: Of the closed loop's calls a second, tried one after the other until so many are answered.
SHARES, ANSWERED_MIN = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5), 0.99
P99_MAX = 2.0
#: By the server, with the time to come back; and by gRPC, of calls that the server has not taken yet.
REFUSALS = ("RESOURCE_EXHAUSTED", "CANCELLED")
#: The generator keeps its pace as long as it is hardly ever later than this, against the times that are measured.
LATE_SHARE_MAX = 0.5


@dataclass(frozen=True, kw_only=True)
class Size:
    """Entities online, rows and features of a request, and how long each load lasts."""

    meters: int
    features: int
    rows: int
    seconds: float


SIZES = {
    "tiny": Size(meters=300, features=3, rows=10, seconds=0.5),
    "small": Size(meters=5_000, features=50, rows=100, seconds=3.0),
    "full": Size(meters=100_000, features=50, rows=100, seconds=15.0),
}


def run(setting: Setting) -> Result:
    """The closed loop, the open one, and the ratio of their 99th percentiles."""
    size = SIZES[setting.size]
    shape = Shape(rows=size.meters, meters=size.meters, features=size.features)
    server_core, other_core = two_cores()
    with ExitStack() as stack:
        with pinned(other_core):
            server = stack.enter_context(redis_server(setting.work / "redis"))
        folder = world.make_repository(setting.work / NAME, size.features, redis_url=server.url)
        setting.show(f"publishing {size.meters:,} entities x {size.features}")
        world.publish_latest(folder, shape)
        running = stack.enter_context(worker(folder, shape, cores=server_core))
        message = setting.work / "lookup.message"
        message.write_bytes(
            calls.lookup(world.SERVICE, world.keys(shape, size.rows), None, None, "columns", False).message
        )
        setting.show(f"{size.rows} x {size.features}: a closed loop, {size.seconds:g} s")
        load = Load(address=running.address, message=message, seconds=size.seconds)
        closed = generate(load, other_core)
        _require_only(closed, "OK")
        steady = _sustained(setting, load, closed, other_core)
        used_s = running.cpu_s()
        over = _open(setting, load, OVERLOAD * steady.per_s, other_core)
        busy = (running.cpu_s() - used_s) / over.seconds
    late = f"the generator was late by {over.late_p99_ms:.2f} ms at p99"
    notes = [f"at {OVERLOAD}x the worker used {busy:.0%} of its core; {late}"]
    if server_core is None:
        notes.append("server and generator share one core, which is no fair load")
    elif over.late_p99_ms > LATE_SHARE_MAX * over.p99_ms:
        notes.append("much of the time measured is the generator's own: it is too slow for this server")
    return Result(name=NAME, sizes=asdict(size), measured=_measured(closed, steady, over), notes=notes)


def _sustained(setting: Setting, load: Load, closed: Outcome, cores: set[int] | None) -> Outcome:
    """The open loop of the greatest rate that is answered."""
    for share in SHARES:
        outcome = _open(setting, load, share * closed.per_s, cores)
        if _part(outcome, "OK") >= ANSWERED_MIN:
            return outcome
    raise Unequal(f"{NAME}: {_part(outcome, 'OK'):.1%} of {outcome.per_s:,.0f} calls/s are answered, which is no load")


def _open(setting: Setting, load: Load, rate: float, cores: set[int] | None) -> Outcome:
    setting.show(f"an open loop of {rate:,.0f} calls/s, {load.seconds:g} s")
    outcome = generate(replace(load, rate=rate), cores)
    _require_only(outcome, "OK", *REFUSALS)
    return outcome


def _part(outcome: Outcome, code: str) -> float:
    """The share of calls that ended so."""
    return outcome.codes.get(code, 0) / sum(outcome.codes.values())


def _refused(outcome: Outcome) -> str:
    shed, unseen = (_part(outcome, code) for code in REFUSALS)
    return f"{shed:.1%} shed, and {unseen:.1%} by gRPC"


def _measured(closed: Outcome, steady: Outcome, over: Outcome) -> list[Measured]:
    return [
        Measured(what="a closed loop of 8", value=closed.per_s, unit="calls/s", detail=f"p99 {closed.p99_ms:.3f} ms"),
        Measured(what="sustained, an open loop", value=steady.per_s, unit="calls/s", detail=_refused(steady)),
        Measured(what="p99 at that", value=steady.p99_ms, unit="ms", detail=f"p50 {steady.p50_ms:.3f} ms"),
        Measured(what=f"answered at {OVERLOAD}x", value=over.per_s, unit="calls/s", detail=_refused(over)),
        Measured(what=f"p99 of those answered at {OVERLOAD}x", value=over.p99_ms, unit="ms"),
        Measured(
            what="p99 against that of the sustained load",
            value=over.p99_ms / steady.p99_ms,
            unit="x",
            required=P99_MAX,
            sense="at most",
            detail=f"refused within {over.refused_p99_ms:.3f} ms at p99",
        ),
    ]


def _require_only(outcome: Outcome, *codes: str) -> None:
    if others := {code: count for code, count in outcome.codes.items() if code not in codes}:
        raise Unequal(f"{NAME}: calls ended with {others}")
