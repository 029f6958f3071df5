"""A second aggregator that follows the store of the one that serves, and takes over if that is silent."""
