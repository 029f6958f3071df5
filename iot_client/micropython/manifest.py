"""Freezes the package into a firmware: include it from the board's own manifest."""

package("midge", base_path=".", opt=3)  # noqa: F821 - MicroPython's build gives it
