"""A local broker for demonstrations and tests: Mosquitto, or the embedded one, as a child process."""
