"""The device: a pure session, its outbox on disk, trainers, and the shell that connects them to MQTT."""
