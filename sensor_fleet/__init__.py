"""Simulated fleets of sensors: their data, models and world, and a whole federation on one machine."""
