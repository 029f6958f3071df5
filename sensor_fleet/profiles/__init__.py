"""Profiles of fleets: hardware, links and availability."""
