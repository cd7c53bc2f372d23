"""The lock of the image's packages: exact versions of all that its install line takes.

`python -m docker.lock` prints the lock with the versions that this environment has, which are those that the tests ran
with. The Python version and the extras are read from docker/Dockerfile.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
MACHINES = ("x86_64", "aarch64")
HEADER = """\
# What docker/Dockerfile installs, in exact versions. `make lock` writes this file from the versions in .venv.
# Versions have no local label: torch==2.13.0 is both 2.13.0+cpu of PyTorch's index and 2.13.0 of the default index.
"""


def direct_requirements(pyproject: Path, dockerfile: Path) -> list[Requirement]:
    """Return the requirements that the image's install line names: the dependencies and those of its extras."""
    project = tomllib.loads(pyproject.read_text())["project"]
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', dockerfile.read_text())
    lines = [*project["dependencies"]]
    for extra in extras.split(","):
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def environments(dockerfile: Path) -> list[dict[str, str]]:
    """Return the markers (PEP 508) of the image's Python, one mapping for each kind of processor."""
    (version,) = set(re.findall(r"^FROM python:(3\.\d+)-", dockerfile.read_text(), re.MULTILINE))
    image = {"python_version": version, "python_full_version": f"{version}.0", "sys_platform": "linux"}
    image |= {"platform_system": "Linux", "os_name": "posix", "implementation_name": "cpython"}
    return [image | {"platform_machine": machine} for machine in MACHINES]


def applies(requirement: Requirement, extras: Iterable[str], markers: Mapping[str, str]) -> bool:
    """Return whether a package that is wanted with these extras has this requirement there."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**markers, "extra": extra}) for extra in ["", *extras])


def requirements_of(name: str, extras: Iterable[str], markers: Mapping[str, str]) -> Iterator[Requirement]:
    """Yield what an installed package requires with these extras.

    PyTorch's build for GPUs names CUDA's libraries in exact versions, for one platform only. They are left out: the
    lock holds for the CPU's build too.
    """
    if name == "torch":
        markers = {**markers, "platform_system": ""}
    for line in distribution(name).requires or []:
        requirement = Requirement(line)
        if applies(requirement, extras, markers):
            yield requirement


def reachable(direct: Iterable[Requirement], markers: Mapping[str, str]) -> set[str]:
    """Return the names of all packages that the requirements need, themselves or through others."""
    extras_of: dict[str, set[str]] = {}
    waiting = [requirement for requirement in direct if applies(requirement, (), markers)]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in extras_of and requirement.extras <= extras_of[name]:
            continue
        extras_of.setdefault(name, set()).update(requirement.extras)
        waiting += requirements_of(name, extras_of[name], markers)
    return set(extras_of)


def lock_text(pyproject: Path, dockerfile: Path) -> str:
    """Return the lock as a file of pip's constraints, with the versions that are installed here.

    Raises `importlib.metadata.PackageNotFoundError` if a package is not installed.
    """
    direct = direct_requirements(pyproject, dockerfile)
    names = set().union(*(reachable(direct, markers) for markers in environments(dockerfile)))
    return HEADER + "".join(f"{name}=={Version(distribution(name).version).public}\n" for name in sorted(names))


if __name__ == "__main__":
    print(lock_text(ROOT / "pyproject.toml", ROOT / "docker/Dockerfile"), end="")
