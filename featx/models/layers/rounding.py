"""Channels that hardware likes."""


def round_chs(chs: float, divisor: int = 8, lowest: float = 0.9) -> int:
    """The nearest multiple of `divisor`, at least one, and not less than `lowest` of `chs`."""
    rounded = max(divisor, int(chs + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < lowest * chs else rounded
