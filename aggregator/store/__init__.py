"""Durable state of an aggregator: journal, bodies, checkpoints, and operations on a store."""
