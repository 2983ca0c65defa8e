"""The table printer of every command: rows of strings, the names of the columns first."""


def text(rows, *, right=(), rule=False):
    """Columns aligned with spaces.

    right: numbers of the columns to align right; rule: underline the names.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        words = [word.rjust(width) if i in right else word.ljust(width)
                 for i, (word, width) in enumerate(zip(row, widths))]
        lines.append("  ".join(words).rstrip())
    if rule:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def markdown(rows):
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)
