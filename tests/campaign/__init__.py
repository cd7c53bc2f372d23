"""Fault injection and load tests of a real server: short in the tests, long in `make campaign`."""
