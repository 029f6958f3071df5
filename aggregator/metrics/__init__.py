"""Counters, Prometheus, and what devices report of their own data."""
