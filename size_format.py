"""Sizes in bytes, for people."""


def format_nbytes(nbytes: int) -> str:
    """Decimal units, as file managers and the Hub show them: 999 B, 1.0 kB, 11.6 MB, 16.55 GB."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
