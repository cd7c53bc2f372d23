"""The tests detect seeded bugs: a few of them here, all of them in `make campaign`."""

from pathlib import Path

import pytest

from tests.campaign.seeded_bugs import BUGS, ROOT, Bug, copy_sources, is_killed
from tests.support.extent import is_full

QUICK = {
    "a replay loses the last token",
    *(("the queue has no limit", "one token too many is generated", "NaN is accepted") if is_full() else ()),
}


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_each_bug_applies_to_the_sources_once(bug: Bug) -> None:
    assert (ROOT / bug.file).read_text("utf-8").count(bug.sound) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.name in QUICK], ids=lambda bug: bug.name)
def test_a_seeded_bug_fails_the_tests(bug: Bug, tmp_path: Path) -> None:
    assert is_killed(bug, copy_sources(tmp_path))
