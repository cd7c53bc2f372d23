"""Parts of the page that need no browser, run by node."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

WEB = Path(__file__).parents[2] / "server" / "web"

NEEDS_NODE = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def run_module(folder: Path, program: str, given: Any = None) -> Any:
    """Return what a program returns that imports modules of the page, such as "./engine/replay.js".

    `folder` is an empty one. The program is the body of an async function with the argument `given`.
    """
    for path in [*WEB.rglob("*.js")]:
        target = folder / path.relative_to(WEB)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "given.json").write_text(json.dumps(given))
    imports, _, body = program.partition("\n\n")
    (folder / "program.js").write_text(
        f'import {{ readFileSync, writeFileSync }} from "node:fs";\n{imports}\n'
        f"const result = await (async (given) => {{\n{body}\n}})"
        '(JSON.parse(readFileSync("given.json", "utf8")));\n'
        'writeFileSync("result.json", JSON.stringify(result));\n'
    )
    finished = subprocess.run(
        [str(shutil.which("node")), "program.js"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads((folder / "result.json").read_text())
