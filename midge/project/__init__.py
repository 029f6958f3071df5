"""What `midge init` makes a project of."""
