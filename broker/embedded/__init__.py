"""A broker of our own: in a process, and in memory for tests and simulations."""
