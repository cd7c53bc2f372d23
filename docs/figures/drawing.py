"""Parts of a figure set by hand in SVG: texts, boxes, lines and arrows, readable on light and on dark pages.

Text has `currentColor`: the figure's own style sets it for a page that shows the file, and the page does if the figure
stands in it. Boxes are tinted so lightly that text on them is readable. One unit is a pixel on a phone.
"""

from collections.abc import Sequence
from html import escape

WIDTH = 360  # of every figure
TEXT_SIZE = 13
BLUE, ORANGE, GREEN, PURPLE = "#3a7fc4", "#c8641b", "#2b8a5a", "#8a63c9"  # at least 3:1 on white and on black
TINT = 0.22  # opacity of a box under text
_STYLE = (
    "svg{color:#24211d;font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}"
    "@media(prefers-color-scheme:dark){svg{color:#e8e4de}}"
)

Point = tuple[float, float]


def figure(height: float, parts: Sequence[str]) -> str:
    """Return the file of a figure of that height."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {_n(height)}" width="{WIDTH * 1.4:g}" '
        f'height="{_n(height * 1.4)}" font-size="{TEXT_SIZE}" fill="currentColor">\n'
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def text(x: float, y: float, words: str, anchor: str = "start", *, is_bold: bool = False, turned: bool = False) -> str:
    """Return a text whose baseline is at y; a turned one reads upwards. The anchor is start, middle or end."""
    attributes = "" if anchor == "start" else f' text-anchor="{anchor}"'
    attributes += ' font-weight="600"' if is_bold else ""
    attributes += f' transform="rotate(-90 {_n(x)} {_n(y)})"' if turned else ""
    return f'<text x="{_n(x)}" y="{_n(y)}"{attributes} xml:space="preserve">{escape(words, quote=False)}</text>'


def box(
    x: float, y: float, width: float, height: float, colour: str, opacity: float = TINT, *, is_outlined: bool = True
) -> str:
    """Return a tinted rectangle; opacity 0 leaves its outline."""
    outline = f' stroke="{colour}"' if is_outlined else ""
    return (
        f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" rx="3" fill="{colour}" '
        f'fill-opacity="{_n(opacity)}"{outline}/>'
    )


def labelled(x: float, y: float, width: float, words: str, colour: str, height: float = 26) -> str:
    """Return a box with a text in its middle."""
    return box(x, y, width, height, colour) + text(x + width / 2, y + height / 2 + 4.5, words, "middle")


def line(points: Sequence[Point], colour: str = "currentColor", width: float = 1.5, *, is_dashed: bool = False) -> str:
    """Return a line through points."""
    path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
    dashes = ' stroke-dasharray="4 4"' if is_dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{_n(width)}"{dashes}/>'


def arrow(start: Point, end: Point, colour: str = "currentColor") -> str:
    """Return a straight arrow."""
    (x, y), (to_x, to_y) = start, end
    length = ((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5
    along, across = (to_x - x) / length, (to_y - y) / length
    wings = [(to_x - 7 * along + side * 4 * across, to_y - 7 * across - side * 4 * along) for side in (1, -1)]
    return line([start, end], colour) + line([wings[0], end, wings[1]], colour)


def double_arrow(start: Point, end: Point, colour: str = "currentColor") -> str:
    """Return a straight arrow with a head at both ends."""
    return arrow(start, end, colour) + arrow(end, start, colour)


def wrapped(words: str, width: float) -> list[str]:
    """Return the lines of a text that is at most so wide, unless a word is wider."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def text_width(words: str) -> float:
    """Return about how wide a text is."""
    return sum(3.8 if letter in " .,'ilIjtf:|()[]" else 10.5 if letter in "mwMW" else 7.4 for letter in words)


def _n(number: float) -> str:
    """Return a number without digits that nobody sees."""
    return f"{round(number, 2):g}"
