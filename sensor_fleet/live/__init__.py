"""A fleet of a profile over a real broker: each device with its own connection, client id, outbox and Last Will."""
