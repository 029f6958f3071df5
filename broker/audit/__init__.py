"""Broker audit: the checks and attacks of `midge broker check`."""
