"""Self-contained HTML pages of figures, pictures and sortable tables.

A page asks nothing of the network. All text is escaped: names are data, never markup.
"""

import base64
import html
import importlib.resources
import io
from collections.abc import Iterable, Sequence
from string import Template
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Cell",
    "cards_part",
    "figure_part",
    "html_page",
    "picture_part",
    "section",
    "table_part",
]


class Cell(NamedTuple):
    """A cell of a table, and the number that its column is sorted by; None is last."""

    text: str
    key: float | None = None


def html_page(title: str, subtitle: str, parts: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: plain text, as the subtitle
        parts: HTML of the functions below, in order
    """
    return Template(_part("page.html")).substitute(
        TITLE=html.escape(title),
        SUBTITLE=html.escape(subtitle),
        STYLE=_part("page.css"),
        SCRIPT=_part("sort.js"),
        BODY="\n".join(parts),
    )


def section(title: str, text: str, *parts: str) -> str:
    """Parts under a heading, with an explanation."""
    explanation = f"<p>{html.escape(text)}</p>" if text else ""
    body = "\n".join(parts)
    return f"<section><h2>{html.escape(title)}</h2>{explanation}\n{body}</section>"


def figure_part(figure: "Figure", description: str) -> str:
    """A chart of matplotlib as a vector graphic; the description is for who cannot see it."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    # Without a date and random names of elements, equal results give equal pages.
    with rc_context({"svg.hashsalt": "sl_detectron"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _image(buffer.getvalue(), "image/svg+xml", description, "chart")


def picture_part(data: bytes, media_type: str, description: str, kind: str = "picture") -> str:
    """An encoded picture, such as a PNG file's bytes with ``image/png``."""
    return _image(data, media_type, description, kind)


def cards_part(cards: Iterable[str]) -> str:
    """Cards in a grid, each of HTML whose texts are escaped."""
    return f'<div class="cards">{"".join(f"<div>{card}</div>" for card in cards)}</div>'


def table_part(head: Sequence[str], rows: Iterable[Sequence[str | Cell]], caption: str) -> str:
    """A table that is sorted by a click on the head of a column.

    Args:
        head: names of the columns
        rows: texts are sorted as texts, cells by their key
        caption: what the table is of
    """
    columns = "".join(
        f'<th scope="col"><button type="button">{html.escape(name)}</button></th>' for name in head
    )
    lines = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="sortable"><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>"
    )


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{html.escape(cell)}</td>"
    key = "" if cell.key is None else repr(float(cell.key))
    return f'<td class="number" data-key="{key}">{html.escape(cell.text)}</td>'


def _image(data: bytes, media_type: str, description: str, kind: str) -> str:
    source = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    return f'<img class="{kind}" alt="{html.escape(description)}" src="{source}">'


def _part(name: str) -> str:
    folder = importlib.resources.files(__package__) / "page"
    return (folder / name).read_text(encoding="utf-8")
