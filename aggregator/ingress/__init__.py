"""Ingress: filter, rate limits, authentication and reassembly of incoming messages."""
