"""The mask helper: a second party's process that sums the masks of devices' updates, and never sees an update."""
