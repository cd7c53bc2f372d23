"""Imports go one way: cli -> server -> scheduler -> model; each side keeps out what is the other's business."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WEB = {"fastapi", "starlette", "uvicorn", "pydantic", "pydantic_settings", "prometheus_client", "asyncio", "typer"}
LLM = {"caravan.LLM", "caravan.offline"}
FORBIDDEN = {
    "model": {"caravan.scheduler", "caravan.server", "caravan.cli", "caravan.download", "tests", *WEB, *LLM},
    "scheduler": {"caravan.server", "caravan.cli", "caravan.download", "tests", *WEB, *LLM},
    "caravan/download": {"caravan.scheduler", "caravan.server", "caravan.cli", "torch", "tests", *WEB, *LLM},
    "server": {"caravan.cli", "torch", "tests", *LLM},
    "caravan/cli": {"tests", "caravan.LLM"},
}
ROOMS = [
    "sandbox",
    "engine",
    "replicas",
    "observe",
    "generation",
    "http",
    "resumption",
    "openai",
    "messages",  # makes chats of its requests
    "ollama",  # adapters onto OpenAI's requests
    "batches",
    "learn",  # encodes its texts as the API's endpoints do
    "operations",
]  # each imports from those before
SERVER_FILES = {
    "__init__.py",
    "adapter_files.py",
    "adapter_settings.py",
    "app.py",
    "serve.py",
    "shared_parts.py",
    "settings.py",
    "settings_file.py",
    "start_text.py",
    "option_groups.py",
    "models_file.py",
    "ray_app.py",
    "shown_options.py",
}
TORCH_FREE = [
    "model/tokenizer/tokenizer.py",
    "model/tokenizer/loader.py",
    "model/tokenizer/detokenizer.py",
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


def _modules(path: Path) -> set[str]:
    """Return the modules of ours that a file imports something from, with what `from PACKAGE import MODULE` names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
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
    files = [ROOT / "caravan/__init__.py", *sorted((ROOT / "caravan/offline").glob("*.py"))]
    assert len(files) > 2
    for path in files:
        assert not imported(path) & {"caravan.cli", "torch", "tests", "uvicorn", "typer"}, path


@pytest.mark.parametrize("package", [*FORBIDDEN, "caravan", "tests", "benchmarks", "docs", "docker"])
def test_our_packages_are_imported_by_their_whole_names(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert not imported(path) & {"server", "scheduler", "model"}, path


def test_server_is_rooms_and_some_files() -> None:
    found = {path.name for path in (ROOT / "server").iterdir() if path.name != "__pycache__"}
    assert found == {*ROOMS, "web", *SERVER_FILES}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_before_it(room: str) -> None:
    allowed = ROOMS[: ROOMS.index(room) + 1]
    for path in (ROOT / "server" / room).rglob("*.py"):
        for module in _modules(path):
            if module.startswith("caravan.server"):
                assert module.split(".")[2] in allowed, f"{path} imports {module}"


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_unpickles(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert not imported(path) & {"pickle", "marshal", "shelve", "dill", "transformers", "vllm"}, path


@pytest.mark.parametrize("file", TORCH_FREE)
def test_what_the_api_process_shares_with_the_engine_is_free_of_torch(file: str) -> None:
    assert "torch" not in imported(ROOT / file)


def test_no_test_module_is_imported() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for module in _modules(path):
            is_test = any(part.startswith("test_") for part in module.split(".")[:-1])
            assert not (is_test and module.startswith("tests.")), f"{path}: {module}; helpers are in tests/support"
