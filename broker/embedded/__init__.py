"""Our own MQTT broker: as a process, and in memory for tests and simulations."""
