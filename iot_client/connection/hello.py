"""The status of a device: its identity, what it holds, and the model that it trains from."""

import time

from midge.iot_client.board.hardware import capabilities
from midge.iot_client.parts import DeviceParts
from midge.iot_client.session.session import DeviceSession
from midge.wire.inputs import sayable
from midge.wire.messages import DeviceState, Hello


def hello_frame(parts: DeviceParts, session: DeviceSession, state: DeviceState, number: int = 0, to: int = 0) -> bytes:
    """The status as it is published, signed if the device has a key; with a number it is a question or an answer."""
    config, target = parts.config, session.announcement
    message = Hello(
        state=state,
        outbox=session.outbox,
        first=session.first,
        next=session.next,
        lineage=None if target is None else target.lineage,
        generation=0 if target is None else target.generation,
        version=0 if target is None else target.version,
        wakes=parts.duty.wakes if state is DeviceState.SLEEPING else 0.0,
        capabilities={}
        if config.secure is not None
        else {
            **capabilities(parts.speed, config.link, micro=config.micro),
            **_lost(parts, session),
            **_rows(parts),
            **({"evaluation_why": parts.unscored[:200]} if parts.unscored else {}),
            **({"training_why": parts.untrained[:200]} if parts.untrained else {}),
            "clock": round(time.time(), 1),
            **(config.capabilities or {}),
        },
        features=sayable(config.feature_names),
        waits=parts.waits[:400] if state.live else "",
        keeps=parts.predicting.keeps if state.live or state is DeviceState.SLEEPING else 0,
        verifies=parts.identity.verifies,
        devices=parts.devices,
        number=number,
        to=to,
    )
    return parts.identity.frame(parts.identity.hide(message, target))


def _lost(parts: DeviceParts, session: DeviceSession) -> dict[str, int]:
    """Number of updates lost to bit rot, or left behind by a renewed outbox; empty if none."""
    lost = parts.outbox.lost + session.unsure
    return {"lost": lost} if lost else {}


def _rows(parts: DeviceParts) -> dict[str, int | str]:
    """Counts of rows from the sources, without their content; empty if there are none."""
    samples = parts.config.samples
    intakes = [] if samples is None else list(samples.intakes.values())
    if not intakes:
        return {}
    why = next((each.reason() for each in intakes if not each.kept and each.reason()), "")
    counts = {"rows_read": sum(each.read for each in intakes), "rows_kept": sum(each.kept for each in intakes)}
    return {**counts, "rows_dropped": sum(each.lost for each in intakes), **({"rows_why": why[:200]} if why else {})}
