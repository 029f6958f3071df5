"""Options for publishing a device's predictions."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from midge.commands.gateway import names_in
from midge.commands.parts import Parser, Problem, other_broker, user_errors

if TYPE_CHECKING:
    from midge.iot_client.device import Device


def add_publishing(parser: Parser) -> None:
    """Add the options."""
    group = parser.add_argument_group(
        "what it predicts", "For each row that comes, as JSON; alarms on TOPIC/alarm too."
    )
    group.add_argument("--publish", metavar="TOPIC", help="publish predictions, or anomaly scores, on this MQTT topic")
    group.add_argument("--publish-retained", action="store_true", help="retain the newest one at the broker")
    group.add_argument("--publish-broker", metavar="URL", help="on this broker (default: the federation's)")
    group.add_argument("--publish-password-file", metavar="FILE", help="the password for the user in its URL")
    group.add_argument(
        "--alarm",
        metavar="VALUE",
        help="alarm above this number, or for this class (default: for unusual scores)",
    )


def publish(app: "Device", args: argparse.Namespace) -> None:
    """Apply the options to the app.

    Raises:
        Problem: one of them is invalid, or contradicts another.
    """
    if args.publish is None:
        for option in ("publish_retained", "publish_broker", "publish_password_file", "alarm"):
            if getattr(args, option):
                raise Problem(f"--{option.replace('_', '-')} goes with --publish TOPIC: say where to publish.")
        return
    from midge.broker import connector  # noqa: PLC0415 - for those who want it
    from midge.iot_client.connection.prediction_topic import PredictionTopic  # noqa: PLC0415

    classes = names_in(args.classes)
    with user_errors():
        endpoint = args.publish_broker and other_broker(args.publish_broker, args.publish_password_file)
        to = PredictionTopic(
            args.publish,
            retain=args.publish_retained,
            alarm=_alarm(args.alarm, classes),
            classes=classes,
            connector=connector(endpoint) if endpoint else None,
        )
        app.config = replace(app.config, publish=to)


def _alarm(text: str | None, classes: list[str]) -> float | str | None:
    if text is None or text in classes:
        return text
    try:
        return float(text)
    except ValueError:
        return text
