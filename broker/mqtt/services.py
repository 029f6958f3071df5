"""Limits of hosted brokers that CONNACK does not tell, each with its source. Pure.

A client keeps to them from its first packet: a service may end the connection of one that exceeds a limit. The embedded
broker enforces them with `--limits NAME`, so that a federation can be tried against them without an account.
"""

from dataclasses import dataclass, field
from typing import Final

KB, MB = 1_000, 1_000_000
"""Where a page does not say whether a KB is 1,000 or 1,024 bytes, the smaller one counts."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One limit, where it is written, and whether that page could be read on the date."""

    value: int
    source: str
    read: str
    """The date on which a stored copy of it was read."""
    verified: bool = True
    """False for a figure that others state, and that was not found on a page of the service itself."""


AWS_SDK = "https://aws.github.io/aws-iot-device-sdk-js-v2/node/enums/mqtt5.ClientExtendedValidationAndFlowControl.html"
AWS_SIZE = "https://github.com/aws/aws-iot-device-sdk-js-v2/issues/535"
ESPRESSIF = "https://docs.espressif.com/projects/esp-rainmaker-neo/en/latest/specs/limits.html"
AZURE = "https://learn.microsoft.com/en-us/azure/event-grid/quotas-limits"
AZURE_RETAIN = "https://learn.microsoft.com/en-us/azure/event-grid/mqtt-retain"
EMQX = "https://docs.emqx.com/en/cloud/latest/create/restriction.html"
HIVEMQ = "https://docs.hivemq.com/hivemq-edge/mqtt-specific-configuration.html"
HIVEMQ_CLOUD = "https://www.hivemq.com/products/mqtt-cloud-broker/"
DAY = "2026-11-30"


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """Limits of one service. None: none is known.

    Those that CONNACK tells with MQTT 5 are here too, for MQTT 3.1.1 and for the embedded broker.
    """

    name: str = ""
    hosts: tuple[str, ...] = ()
    """Ends of its host names: an address with one needs no `--service`."""
    figures: dict[str, Figure] = field(default_factory=dict)
    """By the names of the properties below."""

    def _value(self, name: str) -> int | None:
        figure = self.figures.get(name)
        return None if figure is None else figure.value

    @property
    def packet(self) -> int | None:
        """Bytes of a packet that CONNACK tells."""
        return self._value("packet")

    @property
    def message(self) -> int | None:
        """Bytes of a payload that pass; it may be less than CONNACK tells."""
        return self._value("message")

    @property
    def retained(self) -> int | None:
        """Bytes of a retained payload."""
        return self._value("retained")

    @property
    def receive_maximum(self) -> int | None:
        """Unacknowledged messages of one client, as CONNACK tells it."""
        return self._value("receive_maximum")

    @property
    def in_flight_bytes(self) -> int | None:
        """Unacknowledged bytes of one client. One message may be larger."""
        return self._value("in_flight_bytes")

    @property
    def publishes(self) -> int | None:
        """Messages a second of one client."""
        return self._value("publishes")

    @property
    def bytes_a_second(self) -> int | None:
        """Bytes a second of one client."""
        return self._value("bytes_a_second")

    @property
    def subscriptions(self) -> int | None:
        """Filters that one client is subscribed to at once."""
        return self._value("subscriptions")

    @property
    def filters(self) -> int | None:
        """Filters in one SUBSCRIBE."""
        return self._value("filters")

    @property
    def levels(self) -> int | None:
        """Levels of a topic."""
        return self._value("levels")

    @property
    def client_id(self) -> int | None:
        """Bytes of a client id."""
        return self._value("client_id")


NO_SERVICE: Final = ServiceLimits()
SERVICES: Final = {
    each.name: each
    for each in (
        ServiceLimits(
            "aws-iot",
            (".amazonaws.com", ".amazonaws.com.cn"),
            {
                "packet": Figure(149_504, AWS_SIZE, DAY),
                "message": Figure(128 * 1024, AWS_SIZE, DAY),
                "receive_maximum": Figure(100, AWS_SIZE, DAY),
                "publishes": Figure(100, AWS_SDK, DAY),
                "bytes_a_second": Figure(512 * KB, AWS_SDK, DAY),
                "subscriptions": Figure(50, ESPRESSIF, DAY, verified=False),
                "filters": Figure(8, AWS_SDK, DAY),
                "levels": Figure(8, AWS_SDK, DAY),
                "client_id": Figure(128, AWS_SDK, DAY),
            },
        ),
        ServiceLimits(
            "azure-event-grid",
            (".eventgrid.azure.net",),
            {
                "packet": Figure(512 * KB, AZURE, DAY, verified=False),
                "message": Figure(512 * KB, AZURE, DAY, verified=False),
                "retained": Figure(64 * KB, AZURE_RETAIN, DAY),
                "receive_maximum": Figure(1_000, AZURE, DAY),
                "in_flight_bytes": Figure(64 * KB, AZURE, DAY),
                "publishes": Figure(1_000, AZURE, DAY),
                "bytes_a_second": Figure(MB, AZURE, DAY),
                "subscriptions": Figure(50, AZURE, DAY, verified=False),
                "filters": Figure(10, AZURE, DAY, verified=False),
                "levels": Figure(8, AZURE, DAY, verified=False),
                "client_id": Figure(128, AZURE, DAY, verified=False),
            },
        ),
        ServiceLimits(
            "emqx-serverless",
            (".emqxsl.com", ".emqxsl.cn"),
            {
                "packet": Figure(MB, EMQX, DAY),
                "message": Figure(MB, EMQX, DAY),
                "retained": Figure(MB, EMQX, DAY),
                "receive_maximum": Figure(32, EMQX, DAY, verified=False),
                "publishes": Figure(10, EMQX, DAY),
                "subscriptions": Figure(10, EMQX, DAY),
                "levels": Figure(10, EMQX, DAY),
                "client_id": Figure(1024, EMQX, DAY),
            },
        ),
        ServiceLimits(
            "hivemq-cloud",
            (".hivemq.cloud",),
            {
                "packet": Figure(5 * MB, HIVEMQ_CLOUD, DAY, verified=False),
                "message": Figure(5 * MB, HIVEMQ_CLOUD, DAY, verified=False),
                "receive_maximum": Figure(10, HIVEMQ, DAY, verified=False),
                "client_id": Figure(65_535, HIVEMQ, DAY, verified=False),
            },
        ),
    )
}


def service_at(host: str) -> str | None:
    """The service whose host this is, by its name."""
    return next((each.name for each in SERVICES.values() if host.lower().endswith(each.hosts)), None)


def least(*bounds: int | None) -> int | None:
    """The smallest of the bounds that are known."""
    return min((each for each in bounds if each is not None), default=None)
