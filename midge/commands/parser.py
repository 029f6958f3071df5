"""The parser of the `midge` command, with all of its sub-commands."""

from midge.commands.arguments import CommandParser

EPILOG = "Each command explains itself: midge demo --help"


def command_parser() -> CommandParser:
    """The parser."""
    from midge import __version__  # noqa: PLC0415 - while midge is imported there is none yet
    from midge.commands import COMMANDS  # noqa: PLC0415 - they import each other

    parser = CommandParser(
        prog="midge",
        description="Asynchronous federated learning for fleets of small devices, over MQTT.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"midge {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log debug messages")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.register(subparsers)
    return parser
