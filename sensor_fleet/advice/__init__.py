"""Advice: the same model and budget trained in several ways, and which of them suits a fleet."""
