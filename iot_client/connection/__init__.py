"""What a device says and hears over MQTT."""
