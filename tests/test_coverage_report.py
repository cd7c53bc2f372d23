"""The coverage report fails where a package is below the limit, in its lines or in its branches."""

import pytest
from coverage import Coverage

from tests.support import coverage_report


def summary(lines: int, branches: int) -> dict[str, int]:
    """Return the counts of a file of which this percentage was reached."""
    return {"num_statements": 100, "covered_lines": lines, "num_branches": 100, "covered_branches": branches}


@pytest.mark.parametrize(("lines", "branches", "status"), [(95, 95, 0), (100, 100, 0), (94, 100, 1), (100, 94, 1)])
def test_lines_and_branches_of_each_package_have_a_limit(
    lines: int, branches: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"model/a.py": summary(100, 100), "server/a.py": summary(lines, branches), "model/b/c.py": summary(90, 100)}
    monkeypatch.setattr(coverage_report, "measured_files", lambda: files)
    assert coverage_report.main() == status
    shown = capsys.readouterr().out
    assert "model          95.0%    100.0%\n" in shown
    assert f"server      {lines:>7.1f}%{branches:>9.1f}%\n" in shown
    assert "   10  model/b/c.py\n" in shown
    assert ("needs 95 % of its lines and of its branches" in shown) == bool(status)


def test_the_three_packages_are_measured() -> None:
    measured = Coverage()
    assert measured.get_option("run:branch") is True
    assert measured.get_option("run:source") == ["server", "scheduler", "model"]
