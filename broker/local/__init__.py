"""A broker on this machine: Mosquitto, or the embedded one, as a child process."""
