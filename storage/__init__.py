"""Durable storage: atomic files, locked databases, failpoints to test both; forks and daemon threads."""
