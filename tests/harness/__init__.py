"""Faults on purpose: processes that are killed and stopped, connections that break, and books that must balance."""
