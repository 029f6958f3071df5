"""Certificates, bundles and rights: what `midge broker init` makes for a fleet."""
