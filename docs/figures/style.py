"""One look for all figures, readable on light and on dark pages, and the same bytes for the same drawing."""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

TEXT = "#808080"  # in the middle between black and white
BLUE, ORANGE, GREEN, PURPLE, RED = "#4c8bf5", "#e8833a", "#3aa76d", "#9b6bd3", "#d9534f"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED)


def panels(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure of that many inches and its panels, side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
    for panel in axes:
        panel.patch.set_alpha(0)
    return figure, axes


def blank(panel: Axes) -> Axes:
    """Return the panel without axes, for boxes and arrows."""
    panel.set_axis_off()
    return panel


def box(
    panel: Axes, corner: tuple[float, float], size: tuple[float, float], title: str, colour: str, notes: list[str]
) -> None:
    """Draw a box from its lower left corner: the title at its top, notes below it, or the title alone in the middle."""
    (x, y), (width, height) = corner, size
    style = "round,pad=0.02,rounding_size=0.12"
    panel.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, fc=colour, ec=colour, alpha=0.25))
    title_y = y + height - 0.4 if notes or height > 2 else y + height / 2
    panel.text(x + width / 2, title_y, title, ha="center", va="center", fontsize=10)
    step = (height - 0.7) / max(len(notes), 1)
    for index, note in enumerate(notes):
        note_y = title_y - 0.3 - step * (index + 0.5)
        panel.text(x + width / 2, note_y, note, ha="center", va="center", fontsize=8)


def arrow(panel: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw a straight arrow."""
    panel.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": TEXT})


def write(module: ModuleType, path: Path) -> None:
    """Draw a module's figure and save it as SVG."""
    with mpl.rc_context(fname=Path(__file__).parent / "matplotlibrc"):
        figure: Figure = module.draw()
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def figure_modules() -> list[ModuleType]:
    """Return the modules of this package that draw a figure."""
    package = importlib.import_module("docs.figures")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return [importlib.import_module(f"docs.figures.{name}") for name in names if name not in ("style", "__main__")]
