"""Rows of a device's data, and where they come from."""
