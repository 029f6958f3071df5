"""Training, and the encoding of its result."""
