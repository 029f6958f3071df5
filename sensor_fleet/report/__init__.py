"""The report of a run: what its files say, drawn on one page that stands by itself."""
