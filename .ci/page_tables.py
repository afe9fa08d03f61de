"""Tables of pages that are made from reports: what stands between two marks."""

END = "<!-- end -->"


def replace_table(page: str, report: str, lines: list[str]) -> str:
    """The page with the lines in the place that names the report's file."""
    begin = f"<!-- from .ci/{report} -->"
    head, rest = page.split(begin)
    return "\n".join([head + begin, *lines, END + rest.split(END, 1)[1]])
