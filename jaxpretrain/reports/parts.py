"""Pieces of HTML that several sections of a page have: tables, and the places of figures."""

from collections.abc import Sequence
from html import escape


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns an HTML table of plain text."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def plot(key: str, height: int = 200) -> str:
    """Returns the place of a figure on a page."""
    return f'<div class="plot" id="plot-{key}" style="min-height:{height}px"></div>'
