"""Error messages of other packages, shortened to one line."""

from __future__ import annotations

_LONGEST = 200


def reason(error: Exception) -> str:
    """Message of an error on one line, or its kind if it has none; cut where it becomes a page."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]} .."
