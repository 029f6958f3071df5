"""What is durable: journal, bodies, checkpoints, and operations on a store."""
