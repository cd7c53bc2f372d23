"""The field's words: names and phrases that stand in no code, comment or document of ours."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUFFIXES = {".py", ".md", ".html", ".js", ".mjs", ".css", ".yml", ".toml", ".h", ".cpp", ".sh", ".ipynb"}
# Records of the past, other projects' words and code, and this list.
LEFT_OUT = (
    "CHANGELOG.md",
    "findings/",
    "benchmarks/LOG.md",
    "docs/reliability.md",
    "server/web/vendor/",
    "tests/test_language.py",
)

# Left: what is not said. Right: the field's word.
NAMES = {
    "asker": "RequestContext",
    "door": "ConcurrencyLimit",
    "DoorKeeper": "ConcurrencyLimit",
    "KeyGuard": "ApiKeyAuth",
    "HostGuard": "TrustedHosts",
    "HttpEdge": "RequestLogging",
    "BoundedHead": "HeaderLimits",
    "DrainingServer": "GracefulServer",
    "StoryBook": "RequestHistory",
    "RequestStory": "RequestRecord",
    "ticket": "reservation",
    "TextPiece": "TextDelta",
    "TokenStream": "OutputQueue",
    "LiveRequests": "InFlightRequests",
    "suspect": "quarantined",
    "deaths": "crash_count",
    "CallReader": "ToolCallParser",
    "EngineWatch": "LiveView",
    "watcher": "subscriber",
    "outbox": "MessageSender",
    "spoiled": "poisoned",
    "PromptReading": "prompt log-probabilities",
    "find_kernels": "load_kernels",
    "page_claim": "prefault",
}
PHRASES = {
    "take note": "record, store",
    "so many": "this number of",
    "of theirs": "",
    "whoever": "",
    "for want of": "rejected: queue full",
    "told": "recorded, reported",
    "name of a block": "block hash",
    "prompt reading": "prompt log-probabilities",
    "page claim": "prefault",
}


def written_files() -> list[Path]:
    """Return the files that people write, links and generated pictures left out."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    names = [name for name in listed.split("\0") if name and not name.startswith(LEFT_OUT)]
    paths = [ROOT / name for name in names]
    return [path for path in paths if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink()]


@pytest.mark.parametrize("word", [*NAMES, *PHRASES])
def test_a_word_of_the_list_stands_nowhere(word: str) -> None:
    pattern = re.compile(rf"(?<![A-Za-z]){re.escape(word)}s?(?![A-Za-z])", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in written_files()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"say {NAMES.get(word) or PHRASES.get(word) or 'it otherwise'}: {found}"
