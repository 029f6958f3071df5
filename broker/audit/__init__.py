"""What a broker lets its users do: the checks and attacks of `midge broker check`."""
