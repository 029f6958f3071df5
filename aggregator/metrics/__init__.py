"""Counters, Prometheus, and the devices' reports on their own data."""
