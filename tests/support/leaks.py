"""A pytest plugin: what a file of tests leaves open is reported there, not in the test that runs when it is found."""

import gc
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, None, None]:
    """Collect garbage after the last test of a file, when the fixtures of the file have ended.

    A socket in a reference cycle warns when it is collected, minutes later perhaps. Collecting after each test would
    take longer than most tests.
    """
    yield
    if nextitem is not None and nextitem.path == item.path:
        return
    vars(item).get("funcargs", {}).clear()  # the values of the fixtures of one test; they have ended
    gc.collect()
    reporting = item.config.pluginmanager.get_plugin("unraisableexception")
    assert reporting is not None
    try:
        reporting.pytest_runtest_teardown(item)
    except Exception as error:
        error.add_note(
            f"A test of {item.path.name} left it open, perhaps another one. PYTHONTRACEMALLOC=20 shows where."
        )
        raise
