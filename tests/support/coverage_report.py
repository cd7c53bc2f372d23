"""How much of the measured packages the tests have reached; run by `make coverage`, which has measured it.

Ends with status 1 if the lines or the branches of a package are below the limit.
"""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from coverage import Coverage

MIN_PERCENT = 95.0  # of the lines and of the branches of each package
NUM_FILES = 10  # with the most that was not reached


def main() -> int:
    """Print a line for each package and the files with the most missing; return the exit status."""
    files = measured_files()
    packages: dict[str, Counter[str]] = {}
    for name, summary in files.items():
        packages.setdefault(name.partition("/")[0], Counter()).update(counts(summary))
    is_enough = True
    print(f"{'package':<12}{'lines':>8}{'branches':>10}")
    for name, total in sorted(packages.items()):
        lines, branches = percent(total, "lines"), percent(total, "branches")
        is_enough = is_enough and min(lines, branches) >= MIN_PERCENT
        print(f"{name:<12}{lines:>7.1f}%{branches:>9.1f}%")
    missing = {name: num_missing(counts(summary)) for name, summary in files.items()}
    print("\nlines and branches that no fast test reaches:")
    for name in sorted(missing, key=lambda name: -missing[name])[:NUM_FILES]:
        print(f"{missing[name]:>5}  {name}")
    if not is_enough:
        print(f"\nEach package needs {MIN_PERCENT:g} % of its lines and of its branches. `coverage report -m` has all.")
    return 0 if is_enough else 1


def measured_files() -> dict[str, dict[str, Any]]:
    """Return the counts of every file in the data of the last measurement."""
    measured = Coverage()
    measured.load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coverage.json"
        measured.json_report(outfile=str(path))
        files: dict[str, Any] = json.loads(path.read_text("utf-8"))["files"]
    return {name: file["summary"] for name, file in files.items()}


def counts(summary: dict[str, Any]) -> Counter[str]:
    """Return how many lines and branches a file has, and how many were reached."""
    return Counter(
        {
            "lines": summary["num_statements"],
            "reached lines": summary["covered_lines"],
            "branches": summary["num_branches"],
            "reached branches": summary["covered_branches"],
        }
    )


def percent(total: Counter[str], kind: str) -> float:
    """Return how many percent of the lines or branches were reached."""
    return 100 * total[f"reached {kind}"] / max(total[kind], 1)


def num_missing(total: Counter[str]) -> int:
    """Return how many lines and branches were not reached."""
    return total["lines"] - total["reached lines"] + total["branches"] - total["reached branches"]


if __name__ == "__main__":
    sys.exit(main())
