"""Durable state of a device."""
