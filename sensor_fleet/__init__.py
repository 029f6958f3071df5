"""Simulated fleets of sensors: data, models, hardware, and whole federations on one machine."""
