"""docker/requirements.txt: an exact version of everything that the images install, and the Dockerfiles use it."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from docker.lock import applies, direct_requirements, environments, lock_text, reachable, requirements_of

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "docker/requirements.txt"
DOCKERFILE = ROOT / "docker/Dockerfile"
DOCKERFILES = [DOCKERFILE, ROOT / "docker/Dockerfile.cuda"]


def locked() -> dict[str, Version]:
    """Return the versions of the lock by name."""
    lines = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {name: Version(number) for name, number in pairs}


def direct() -> list[Requirement]:
    return direct_requirements(ROOT / "pyproject.toml", DOCKERFILE)


def installs(dockerfile: Path) -> list[str]:
    return re.findall(r"^RUN (pip install .*)$", dockerfile.read_text(), re.MULTILINE)


def is_locked_version(name: str, versions: dict[str, Version]) -> bool:
    """Return whether this environment has the version of the lock: only then its metadata speaks of that version."""
    return versions[name].public == Version(version(name)).public


def test_the_lock_is_sorted_and_has_each_package_once_under_its_canonical_name() -> None:
    names = re.findall(r"^([^#=]+)==", LOCK.read_text(), re.MULTILINE)
    assert len(names) > 60
    assert names == sorted(set(names))
    assert names == [canonicalize_name(name) for name in names]


def test_versions_have_no_local_label_so_that_every_build_of_pytorch_fits() -> None:
    versions = locked()
    assert all(number.local is None for number in versions.values())
    assert Requirement(f"torch=={versions['torch']}").specifier.contains(f"{versions['torch']}+cpu")


@pytest.mark.parametrize("machine", [0, 1])
def test_the_lock_fits_everything_that_is_required_directly_and_by_others(machine: int) -> None:
    versions = locked()
    markers = environments(DOCKERFILE)[machine]
    waiting = [(one, frozenset(one.extras)) for one in direct() if applies(one, (), markers)]
    seen = set()
    while waiting:
        requirement, extras = waiting.pop()
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{name} is not in docker/requirements.txt: make lock"
        assert requirement.specifier.contains(versions[name], prereleases=True), f"{requirement}: make lock"
        if (name, extras) not in seen and is_locked_version(name, versions):
            waiting += [(one, frozenset(one.extras)) for one in requirements_of(name, extras, markers)]
        seen.add((name, extras))
    assert len(seen) > 60


def test_the_command_writes_the_lock_where_the_environment_has_its_versions() -> None:
    text = lock_text(ROOT / "pyproject.toml", DOCKERFILE)
    if all(is_locked_version(name, locked()) for name in locked()):
        assert text == LOCK.read_text()
    assert {"torch", "opentelemetry-sdk", "markupsafe"} <= set(re.findall(r"^([^#=]+)==", text, re.MULTILINE))


def test_markers_are_those_of_the_image_and_not_of_this_machine() -> None:
    wanted = [Requirement(line) for line in ("rich", "anyio; python_version < '3.12'", "tqdm; sys_platform == 'win32'")]
    (version_of_image,) = {markers["python_version"] for markers in environments(DOCKERFILE)}
    assert f"FROM python:{version_of_image}-" in DOCKERFILE.read_text()
    assert reachable(wanted, environments(DOCKERFILE)[0]) == {"rich", "markdown-it-py", "mdurl", "pygments"}


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_images_install_pytorch_first_then_the_lock_and_the_package_within_it(dockerfile: Path) -> None:
    pytorch, packages, caravan = installs(dockerfile)
    assert pytorch.endswith(f'"torch=={locked()["torch"]}"')
    assert packages.endswith("--requirement requirements.txt")
    assert "--constraint requirements.txt" in caravan
    assert "COPY docker/requirements.txt ./" in dockerfile.read_text()


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_both_images_install_the_extras_that_the_lock_was_made_with(dockerfile: Path) -> None:
    assert {one.name for one in direct_requirements(ROOT / "pyproject.toml", dockerfile)} == {
        one.name for one in direct()
    }
