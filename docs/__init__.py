"""The guide and what draws its figures."""
