"""The server: a pure core, strategies, model arithmetic, the store, and the shell that connects them to MQTT."""
