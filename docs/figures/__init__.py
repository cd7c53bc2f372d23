"""The figures of the guide, one module each; `python -m docs.figures` writes them all as SVG."""
