"""A referee: plays the aggregator against a device of any language, and says which rules of the protocol it keeps."""
