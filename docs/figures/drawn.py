"""Which modules draw a figure, and how it is written."""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType


def figure_modules() -> list[ModuleType]:
    """Return the modules of this package that draw a figure."""
    package = importlib.import_module("docs.figures")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f"docs.figures.{name}") for name in names if name != "__main__"]
    return [module for module in modules if hasattr(module, "draw")]


def write(module: ModuleType, path: Path) -> None:
    """Draw a module's figure and save it as SVG."""
    path.write_text(module.draw(), "utf-8")
