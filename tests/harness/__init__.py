"""Real processes that are killed, stopped and cut off, and a model that shows which updates are in it."""
