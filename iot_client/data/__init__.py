"""Rows of a device's data, and their sources."""
