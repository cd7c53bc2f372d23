"""The engine as a Python class, without HTTP: `from caravan import LLM`."""
