"""The figures of the guide and of ARCHITECTURE.md, one module each; `python -m docs.figures` writes them all as SVG."""
