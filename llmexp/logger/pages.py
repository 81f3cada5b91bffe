"""Texts as small HTML pages, for loggers that show them in a browser."""

import html
from collections.abc import Mapping, Sequence

_STYLE = (
    "<meta charset='utf-8'><style>body{font:14px sans-serif}table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:6px;text-align:left;vertical-align:top}"
    "td,pre{white-space:pre-wrap}</style>"
)


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows with the same keys as a table."""
    names = list(rows[0]) if rows else []
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = (
        "".join(f"<td>{html.escape(str(row.get(name, '')))}</td>" for name in names) for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"{_STYLE}<table><tr>{head}</tr>{body}</table>"


def text(content: str) -> str:
    """Return a text as it is written."""
    return f"{_STYLE}<pre>{html.escape(content)}</pre>"
