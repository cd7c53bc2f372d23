"""Caravan: an inference server for Llama models.

The folders `server`, `scheduler` and `model` stand beside this one and are linked here: together they are the package.
"""

__version__ = "0.1.0"
