"""The aggregator's decisions: pure, without I/O, arrays and a clock."""
