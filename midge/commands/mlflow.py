"""`midge mlflow`: follow a federation, and mirror its measurements and registered versions into MLflow."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from midge.commands.numbers import refuse_impossible
from midge.commands.parts import Problem, Subparsers, add_federation, existing_store, read_federation, server_side
from midge.extras import how_to_get
from midge.running import run_until_interrupted


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "mlflow",
        help="mirror a federation into MLflow: its measurements, its registered versions",
        description="Follow a federation at its broker, until interrupted, and log in MLflow what it measures. With "
        "--store, on the aggregator's machine, its registered versions are in MLflow's model registry, with values, "
        "lineage and the aliases champion and candidate. The aggregator does nothing for it: if MLflow is away, what "
        "was measured waits here.",
    )
    add_federation(parser)
    parser.add_argument("--store", metavar="DIR", help="the aggregator's store, if it is on this machine: for versions")
    group = parser.add_argument_group("MLflow")
    group.add_argument(
        "--tracking-uri",
        metavar="URI",
        required=True,
        help="MLflow's server or store, such as http://localhost:5000 or sqlite:///mlflow.db",
    )
    group.add_argument("--experiment", metavar="NAME", help="default: midge/ and the federation's name")
    group.add_argument("--model", metavar="NAME", help="in MLflow's model registry (default: the federation's name)")
    group.add_argument("--artifacts", metavar="URI", default="", help="of a new experiment (default: MLflow's)")
    group.add_argument("--every", type=float, default=300.0, metavar="S", help="between two samples (default: 300)")
    parser.add_argument("--json", action="store_true", help="one JSON object after each attempt to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    refuse_impossible(args, {"every": 300}, (), ())
    store = None if args.store is None else existing_store(args.store)
    connect, topics = read_federation(args)
    with server_side():
        from midge.aggregator.store import registered  # noqa: F401, PLC0415 - an extra
    try:
        from midge.model_export.mlflow_bridge import MlflowBridge  # noqa: PLC0415 - an extra
        from midge.model_export.mlflow_mirror import MlflowMirror  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise Problem(how_to_get(error) or str(error)) from error
    mirror = MlflowMirror(
        args.tracking_uri,
        topics.federation,
        experiment=args.experiment or f"midge/{topics.federation}",
        model=args.model or topics.federation,
        artifacts=args.artifacts,
    )
    show = _as_json if args.json else _Sentences()
    run_until_interrupted(MlflowBridge(connect, topics, store, mirror, every=args.every, tell=show))
    return 0


def _as_json(said: Mapping[str, Any]) -> None:
    print(json.dumps(said), flush=True)


class _Sentences:
    """Prints what is new; failures are in the log."""

    def __init__(self) -> None:
        self._first, self._versions = True, 0

    def __call__(self, said: Mapping[str, Any]) -> None:
        if said["ok"] and (self._first or said.get("versions", 0) > self._versions):
            print(f"In MLflow: {said.get('samples', 0)} samples, {said.get('versions', 0)} new versions.", flush=True)
            self._first, self._versions = False, said.get("versions", 0)
