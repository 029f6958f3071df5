"""Names for every reason code in every packet, so that paho's parser accepts any answer of a broker.

MQTT 5 assigns each reason code to certain packets, and paho-mqtt 2.2 raises an exception for any other combination: the
whole packet counts as malformed, and the connection ends. Brokers do send others. Mosquitto, for one, answers a PUBLISH
beyond its `message_size_limit` with 0x95 in PUBACK, which the standard has in CONNACK and DISCONNECT only.

paho looks names up in a public class attribute, `ReasonCode.names`. It is replaced here, for the whole process; known
names are kept. This was tested with paho-mqtt 2.2, so pyproject.toml allows no other.
"""

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

CARRIERS = (
    PacketTypes.CONNACK,
    PacketTypes.PUBACK,
    PacketTypes.PUBREC,
    PacketTypes.PUBREL,
    PacketTypes.PUBCOMP,
    PacketTypes.SUBACK,
    PacketTypes.UNSUBACK,
    PacketTypes.DISCONNECT,
    PacketTypes.AUTH,
)
"""Packets that have a reason code; MQTT 5, section 2.4."""


def name_all_codes() -> None:
    """Name unnamed codes by their number, as in `reason 0x95`. A second call changes nothing."""
    names: dict[int, dict[str, list[int]]] = {}
    for code in range(256):
        names[code] = dict(ReasonCode.names.get(code, {}))
        named = {packet for packets in names[code].values() for packet in packets}
        if unnamed := [packet for packet in CARRIERS if packet not in named]:
            names[code][f"reason 0x{code:02X}"] = unnamed
    ReasonCode.names = names
