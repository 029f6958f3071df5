"""Settings files in TOML: an aggregator or a device without a line of Python.

Every key comes from what the Python API or the command line already has: dataclasses, presets, models and options. Its
type, default and meaning are theirs.
"""
