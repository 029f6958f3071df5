"""`midge advise DATA`: which way of training suits a fleet, measured before anything is built."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midge.commands.apps import attribute
from midge.commands.numbers import refuse_impossible
from midge.commands.output import say
from midge.commands.parts import Problem, Subparsers, add_page, try_page, user_errors, write_page
from midge.logs import print_line

if TYPE_CHECKING:
    from midge.sensor_fleet.advice.advice import Advice


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "advise",
        help="pooled, distributed, federated, hybrid or alone: measured on your data before anything is built",
        description="Train the same model with the same budget in five ways: rows pooled on one machine; data-parallel "
        "over processes (torch.distributed); federated, on the virtual fleet of a profile; sites that train "
        "data-parallel inside and federate outside; each device alone. Writes one page with accuracy, worst device, "
        "time, bytes, energy and who sees what, and says what to do and when that would change.",
    )
    parser.add_argument(
        "data", metavar="DATA", help="an .npz file with x, y and optionally unit; or digits, vibration, energy"
    )
    parser.add_argument(
        "--profile",
        default="factory",
        metavar="NAME|FILE.toml",
        help="hardware and links: factory, farm, city-gateways, phones, microcontrollers, demo, or a file "
        "(default: factory)",
    )
    parser.add_argument(
        "--rows-may-go",
        choices=["nowhere", "site", "anywhere"],
        help="where rows may go by your duties: stay on the device, within a site, or anywhere (default: not said; "
        "ways that move rows must then be better)",
    )
    parser.add_argument(
        "--model",
        default=None,
        metavar="NAME|MODULE:ATTRIBUTE",
        help="linear, mlp or cnn; or a torch module of yours, its class, or a function that makes one (default: mlp)",
    )
    parser.add_argument("--devices", type=int, metavar="N", help="of the fleet (default: those of the data, or 20)")
    parser.add_argument(
        "--days",
        type=float,
        default=4.0,
        help="of federated training; its steps are the budget of all ways (default: 4)",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trials (default: 3)")
    parser.add_argument("--sites", type=int, metavar="N", help="of the hybrid (default: the root of the devices)")
    parser.add_argument(
        "--processes", type=int, default=2, metavar="N", help="data-parallel ones, at most a batch of rows (default: 2)"
    )
    parser.add_argument(
        "--data-days", type=float, default=30.0, metavar="D", help="in which a device records these rows (default: 30)"
    )
    add_page(parser, "advice.html")
    prices = parser.add_argument_group(
        "prices",
        "For what a device costs a month. The defaults are examples: an IoT tariff that begins at 0.0025 € per MB "
        "(Onomondo, June 2026), and electricity of EU households in the first half of 2025 (Eurostat, October 2025).",
    )
    prices.add_argument("--price-per-gb", type=float, default=2.5, metavar="€", help="of traffic (default: 2.5)")
    prices.add_argument("--price-per-kwh", type=float, default=0.2872, metavar="€", help="of energy (default: 0.2872)")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        from midge.sensor_fleet.advice.advice import advise  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise Problem(f'Advice needs {error.name}: pip install "midge[demo]"') from error
    refuse_impossible(args, {"days": 4, "data_days": 30}, ("seeds",), ("price_per_gb", "price_per_kwh"))
    try_page(args.output)
    names = ("profile", "rows_may_go", "devices", "days", "seeds", "sites", "processes", "data_days")
    prices = ("price_per_gb", "price_per_kwh")
    with user_errors():
        found = advise(
            args.data, model=_model(args.model), tell=_tell, **{name: getattr(args, name) for name in (*names, *prices)}
        )
    if args.json:
        print_line({**found.packed(), "page": str(Path(args.output))})
    else:
        _print(found)
    path = write_page(args.output, found.page())
    if not args.json:
        say(f"\nThe page is {path}.")
    return 0


def _model(name: str | None) -> Any:
    return attribute(name) if name is not None and ":" in name else name


def _tell(text: str) -> None:
    say(text, to=sys.stderr)


def _print(found: "Advice") -> None:
    from midge.commands.virtual import print_table  # noqa: PLC0415
    from midge.sensor_fleet.report.quantities import duration, energy, score, significant, size  # noqa: PLC0415 - an extra

    head = ("", found.metric, "own rows", "worst", "time", "over links", "energy", "€ a month", "rows go")
    rows = [
        (
            row.title,
            score(row.score.mean, found.metric),
            score(row.own.mean, found.metric),
            score(row.worst.mean, found.metric),
            duration(row.seconds),
            size(row.bytes),
            energy(row.joules),
            significant(found.setting.monthly_price(row)),
            row.exposure.reach,
        )
        for row in found.rows
    ]
    print_table(head, rows)
    for way, why in found.missing.items():
        say(f"{way} was not measured: {why}")
    say()
    say(" ".join(found.decision.sentences))
    for sentence in found.decision.changes:
        say(f"- {sentence}")
