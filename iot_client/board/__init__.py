"""Limits that the board and its owner set: conditions, budgets, duty cycles."""
