"""The MQTT side of a device."""
