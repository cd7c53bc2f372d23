"""Write every figure beside its module."""

from pathlib import Path

from docs.figures.drawn import figure_modules, write


def main() -> None:
    """Draw all figures."""
    for module in figure_modules():
        path = Path(__file__).parent / f"{module.__name__.rpartition('.')[2]}.svg"
        write(module, path)
        print(path)


if __name__ == "__main__":
    main()
