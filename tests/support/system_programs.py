"""Programs that some tests drive and that are no Python packages; `python -m` it to see which are missing.

Nothing is installed: without a program its tests are skipped. With `--quiet` the exit status alone says whether all
programs are there.
"""

import os
import shutil
import sys
from collections.abc import Mapping

PACKAGES = {"chromium": "chromium", "promtool": "prometheus", "nginx": "nginx-light", "javac": "default-jdk-headless"}


def missing_programs(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the programs that are not there."""
    path = f"{environ.get('PATH', os.defpath)}:/usr/sbin"
    return [name for name in PACKAGES if shutil.which(name, path=path) is None]


def advice(missing: list[str]) -> str:
    """Return the line that says which tests are skipped and how to run them, too."""
    packages = " ".join(PACKAGES[name] for name in missing)
    return f"Not installed: {', '.join(missing)}. Their tests are skipped. On Debian: apt-get install {packages}"


if __name__ == "__main__":
    if missing := missing_programs():
        if "--quiet" in sys.argv:
            sys.exit(1)
        print(advice(missing))
