"""Imports go one way: cli -> server -> scheduler -> model; each side keeps out what is the other's business."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WEB = {"fastapi", "starlette", "uvicorn", "pydantic", "pydantic_settings", "prometheus_client", "asyncio", "typer"}
LLM = {
    "caravan.LLM",
    "caravan.llm",
    "caravan.local_engine",
    "caravan.local_generation",
    "caravan.prompt_job",
    "caravan.results",
    "caravan.sampling_params",
}
FORBIDDEN = {
    "model": {"caravan.scheduler", "caravan.server", "caravan.cli", "caravan.download", "tests", *WEB, *LLM},
    "scheduler": {"caravan.server", "caravan.cli", "caravan.download", "tests", *WEB, *LLM},
    "caravan/download": {"caravan.scheduler", "caravan.server", "caravan.cli", "torch", "tests", *WEB, *LLM},
    "server": {"caravan.cli", "torch", "tests", *LLM},
    "caravan/cli": {"tests", *LLM},
}
TORCH_FREE = [
    "model/tokenizer.py",
    "model/tokenizer_loader.py",
    "model/detokenizer.py",
    "scheduler/scheduler.py",
    "scheduler/block_pool.py",
]


def imported(path: Path) -> set[str]:
    """Return the top-level packages a file imports, wherever in it, and of ours the part, such as caravan.model."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {_package(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = str(node.module)
            names |= {_package(f"{module}.{alias.name}" if module == "caravan" else module) for alias in node.names}
    return names


def _package(module: str) -> str:
    return ".".join(module.split(".")[: 2 if module.startswith("caravan.") else 1])


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_nothing_of_the_packages_above_it(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported(path) & FORBIDDEN[package], path


def test_the_python_class_imports_neither_the_command_line_nor_torch() -> None:
    files = sorted((ROOT / "caravan").glob("*.py"))
    assert {"caravan.LLM", *(f"caravan.{path.stem}" for path in files)} >= LLM
    for path in files:
        if path.name != "__main__.py":
            assert not imported(path) & {"caravan.cli", "torch", "tests", "uvicorn", "typer"}, path


@pytest.mark.parametrize("package", [*FORBIDDEN, "caravan", "tests", "benchmarks", "docs", "docker"])
def test_our_packages_are_imported_by_their_whole_names(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert not imported(path) & {"server", "scheduler", "model"}, path


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_unpickles(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert not imported(path) & {"pickle", "marshal", "shelve", "dill", "transformers", "vllm"}, path


@pytest.mark.parametrize("file", TORCH_FREE)
def test_what_the_api_process_shares_with_the_engine_is_free_of_torch(file: str) -> None:
    assert "torch" not in imported(ROOT / file)
