"""In what other brokers differ from the contract suite, each with the reason, as the page says it."""

_WINDOW = "sends more unacknowledged messages than the client's receive maximum allows"
_TAKEOVER = "closes the older of two connections with one client id without a reason"
_OF_WINDOW = dict.fromkeys(
    (
        "test_unacknowledged_messages_stop_delivery_until_acknowledged",
        "test_a_repeated_or_foreign_acknowledgement_is_ignored",
        "test_an_acknowledgement_from_before_a_reconnect_is_dropped",
    ),
    _WINDOW,
)
_OF_OLD = {**_OF_WINDOW, "test_a_second_client_with_the_same_id_takes_over": _TAKEOVER}
"""MQTT 3.1.1 has neither."""
_RUMQTTD = {
    **_OF_OLD,
    "test_qos_0_is_delivered_without_acknowledgement": "delivers a message at the QoS of the subscription, even one "
    "that was published at QoS 0",
}
_ONE = "sends one message at QoS 1 at a time, and the next after its acknowledgement"

KNOWN: dict[str, dict[str, str]] = {
    "aedes": _OF_OLD,
    "rumqttd": _RUMQTTD,
    "rumqttd-5": _RUMQTTD,
    "rabbitmq": {
        **_OF_OLD,
        "test_retained_under_a_wildcard": "sends retained messages to filters without wildcards only",
    },
    "ejabberd": dict.fromkeys(
        (
            "test_unacknowledged_messages_stop_delivery_until_acknowledged",
            "test_acknowledgements_are_sent_in_the_order_of_arrival",
            "test_what_arrived_before_the_loss_is_delivered_first",
            "test_literal_and_plus_filters",
            "test_waiting_takes_what_messages_would",
        ),
        _ONE,
    ),
}
"""Reasons by test, by broker. Other tests pass."""
