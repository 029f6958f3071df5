"""Durable storage: files written atomically, locked SQLite databases, and failpoints to test both."""
