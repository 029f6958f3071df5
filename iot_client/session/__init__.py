"""The device's decisions: pure state machines, without I/O and without a clock."""
