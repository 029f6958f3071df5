"""A site's gateway: the aggregator of its devices, and one device of the federation above."""
