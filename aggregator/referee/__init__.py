"""A referee: plays the aggregator for a device in any language, and checks which rules of the protocol it keeps."""
