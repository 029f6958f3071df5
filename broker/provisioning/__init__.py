"""Provisioning: the certificates, bundles and rights that `midge broker init` makes for a fleet."""
