"""A federation in virtual time: the production aggregator core and device sessions, driven by an event queue."""
