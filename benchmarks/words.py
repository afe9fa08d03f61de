"""How pages of results write sizes, times, numbers and details."""

from benchmarks.results_file import Case


def size_words(case: Case) -> str:
    return ", ".join(f"{symbol}={extent}" for symbol, extent in case.size.items())


def seconds_words(seconds: float, digits: int = 3) -> str:
    """A time with its unit, as "1.23 ms"."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * scale or unit == "µs":
            break
    return f"{_digits(seconds / scale, digits)} {unit}"


def three_digits(value: float) -> str:
    """A number as pages show it."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def folded(title: str, text: str) -> str:
    """Details that a click opens, on the site and where else Markdown is shown."""
    return f'<details markdown="1">\n<summary>{title}</summary>\n\n{text}\n\n</details>\n'


def _digits(number: float, digits: int) -> str:
    return f"{float(f'{number:.{digits}g}'):g}"
