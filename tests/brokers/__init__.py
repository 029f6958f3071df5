"""Midge over other brokers: the contract suite, the demonstration, kills, `broker check` and `clean` on each."""
