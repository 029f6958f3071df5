"""Training, and the encoding of what it found."""
