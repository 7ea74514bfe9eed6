"""Prove that the online store holds what history says, entity by entity; exit 1 when it does not."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from featurestore import FeatureStore
from featurestore.cli.output import instant, plain, print_json, table
from featurestore.cli.repository import Context
from featurestore.cli.served import verify_served
from featurestore.errors import InputError

if TYPE_CHECKING:
    from featurestore.parity.report import Difference, ViewParity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `verify`."""
    parser.add_argument("--service", metavar="NAME", help="only the views of this service (default: all views)")
    parser.add_argument("--sample", type=int, metavar="N", help="compare only N entities of each view, always the same")
    parser.add_argument(
        "--max-lag", type=float, metavar="SECONDS", help="rows that wait longer to be published are a fault too"
    )
    parser.add_argument(
        "--served", metavar="LOG", help="recompute a served log (a file, or a folder of them) from history instead"
    )


def run(args: argparse.Namespace, context: Context) -> int:
    """0 when every published entity is equal, and no row has waited longer than --max-lag."""
    if args.served is not None:
        if args.sample is not None or args.max_lag is not None:
            raise InputError("--served reads what was recorded; --sample and --max-lag belong to the online store")
        return verify_served(args.served, args.service, context)
    if args.max_lag is not None and args.max_lag < 0:
        raise InputError(f"--max-lag {args.max_lag:g}: a row cannot wait less than 0 seconds; give 0 or more")
    with context.repository() as repository:
        compared = FeatureStore.of(repository).verify(args.service, sample=args.sample)
    faults = sum(parity.faults.total() for parity in compared)
    lagging = [parity for parity in compared if _lags(parity, args.max_lag)]
    if context.json:
        views = [{**_document(parity), "lagging": parity in lagging} for parity in compared]
        print_json({"equal": faults == 0, "views": views})
    else:
        print(_text(compared, faults, lagging))
    return 1 if faults or lagging else 0


def _lags(parity: ViewParity, max_lag_s: float | None) -> bool:
    return max_lag_s is not None and parity.pending.total() > 0 and parity.pending_us > max_lag_s * 1_000_000


def _text(compared: list[ViewParity], faults: int, lagging: list[ViewParity]) -> str:
    from featurestore.parity.report import CAUSES, HEAL, KINDS

    headers = ["view", "as of", "compared", "equal", *KINDS, "pending rows"]
    rows: list[list[Any]] = [
        [
            parity.view,
            "never published" if parity.horizon_us is None else instant(parity.horizon_us),
            parity.compared,
            parity.equal,
            *parity.counts.values(),
            _pending(parity),
        ]
        for parity in compared
    ]
    lines = [table(headers, rows), ""]
    for parity in compared:
        lines += [f"{parity.view} {_shown(example)}" for example in parity.examples]
    found = dict.fromkeys(cause for parity in compared for _, cause in parity.faults)
    lines += [f"{cause}: {CAUSES[cause]}" for cause in found]
    lines += [HEAL] if found else []
    lines += [f"{parity.view}: rows wait for {_age(parity.pending_us)}, longer than --max-lag" for parity in lagging]
    total = sum(parity.equal for parity in compared)
    verdict = f"{faults:,} differ" if faults else "no difference"
    return "\n".join([*lines, f"{total:,} entities equal, {verdict}"])


def _pending(parity: ViewParity) -> str:
    if not parity.pending:
        return "0"
    causes = ", ".join(f"{count:,} {cause}" for cause, count in parity.pending.items())
    return f"{causes}, for {_age(parity.pending_us)}"


def _age(us: int) -> str:
    return f"{us / 1_000_000:,.0f} s"


def _shown(example: Difference) -> str:
    key = ", ".join(f"{name}={plain(value)}" for name, value in example.key.items())
    return f"{example.kind}: {key}: {example.says}"


def _document(parity: ViewParity) -> dict[str, Any]:
    return {
        "view": parity.view,
        "position": parity.position,
        "horizon": instant(parity.horizon_us),
        "entities": parity.entities,
        "compared": parity.compared,
        "equal": parity.equal,
        "expired": parity.expired,
        "pending": parity.pending.total(),
        "pending_causes": dict(parity.pending),
        "pending_s": parity.pending_us / 1_000_000,
        **{kind.replace(" ", "_"): count for kind, count in parity.counts.items()},
        "causes": parity.causes,
        "examples": [
            {
                "kind": example.kind,
                "cause": example.cause,
                "key": _plain(example.key),
                "expected": _plain(example.expected),
                "online": _plain(example.online),
                "says": example.says,
            }
            for example in parity.examples
        ],
    }


def _plain(values: Any) -> dict[str, Any] | None:
    return None if values is None else {name: plain(value) for name, value in values.items()}
