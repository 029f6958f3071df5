"""The model and the arithmetic on it."""
