"""Engines as replicas: one API process over several of them, wherever they run."""
