"""The report of a run: a self-contained page from its files."""
