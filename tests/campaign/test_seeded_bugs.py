"""The tests notice bugs: a few of those that `make campaign` tries, and all of them can be tried."""

from pathlib import Path

import pytest

from tests.campaign.seeded_bugs import BUGS, ROOT, Bug, copy_sources, is_killed

QUICK = {"a replay loses the last token", "the queue has no bound", "one token too many", "NaN is read"}


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_each_bug_has_its_place_in_the_sources(bug: Bug) -> None:
    assert (ROOT / bug.file).read_text("utf-8").count(bug.sound) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.name in QUICK], ids=lambda bug: bug.name)
def test_a_bug_is_noticed(bug: Bug, tmp_path: Path) -> None:
    assert is_killed(bug, copy_sources(tmp_path))
