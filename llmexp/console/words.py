"""Numbers and texts the way a person reads them."""

import math
import re

# all of C0, DEL and C1 but tab and line feed, and what turns the direction of the text around it:
# generated text must not drive a terminal
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_DAYS = (math.inf, 86400, "d")


def number(value: float) -> str:
    """Write a loss, a rate or a perplexity with three or four significant digits."""
    size = abs(value)
    if 1e6 <= size < math.inf:
        return f"{value:.1e}"
    if size >= 999.95:
        return f"{value:,.0f}"
    return f"{value:#.4g}" if size >= 0.001 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Write a length of time the way a person says it, in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 60:
        return f"{minutes} min {whole % 60} s"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{days} d {hours % 24} h"


def span(low: float, middle: float, high: float) -> str:
    """Write a length of time that is known only within a range, in the unit of its upper end."""
    size, unit = next(
        (size, unit)
        for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h"), _DAYS)
        if high < limit
    )
    first, last = round(low / size), round(high / size)
    return f"about {duration(middle)}" if first == last else f"{first}-{last} {unit}"


def perplexity(loss: float) -> float:
    """Return exp(loss), infinite where a float cannot hold it."""
    return math.inf if loss > 700 else math.exp(loss)


def printable(text: str, encoding: str | None) -> str:
    """Make control characters visible, and replace what the stream's encoding cannot say."""
    visible = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    encoding = encoding or "utf-8"
    return visible.encode(encoding, "backslashreplace").decode(encoding)


def one_line(text: str) -> str:
    """Return a text as one printable line."""
    return printable(" ".join(text.split()), "utf-8")
