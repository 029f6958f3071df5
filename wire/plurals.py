"""Counts with a noun."""


def counted(number: int, one: str, many: str = "") -> str:
    """1 device, 20 devices."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
