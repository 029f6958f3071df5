"""From messages to events: filter, rate limits, authentication, reassembly."""
