"""Faults and abuse against a real server: short in the tests, at length by `make campaign`."""
