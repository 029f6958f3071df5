"""The commands: arguments in, words and an exit code out. What they do is done elsewhere."""

from midge.commands import aggregate, broker, clean, compare, demo, device, explain, fleet, replay, report, status

COMMANDS = (demo, aggregate, device, broker, status, explain, replay, report, compare, fleet, clean)


def problems() -> tuple[type[Exception], ...]:
    """What a person can mend: shown as one sentence, without a traceback."""
    from broker import BrokerError  # noqa: PLC0415
    from iot_client.device import Namesake  # noqa: PLC0415
    from iot_client.outbox import OutboxError  # noqa: PLC0415
    from midge.commands.parts import Problem  # noqa: PLC0415

    found: list[type[Exception]] = [BrokerError, Namesake, OutboxError, Problem]
    try:
        from aggregator.store import StoreError  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        pass
    else:
        found.append(StoreError)
    return tuple(found)
