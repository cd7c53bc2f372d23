"""Links in a folder of a model or an adapter."""

from pathlib import Path

from caravan.model.checkpoint import BrokenCheckpoint


def check_links(folder: Path) -> None:
    """Raise BrokenCheckpoint if a link in the folder leads out of it, except to the blobs of the Hugging Face cache.

    Otherwise the author of a folder could have any file of this machine read.
    """
    home = folder.resolve()
    blobs = home.parent.parent / "blobs"  # of a folder models--org--name/snapshots/commit
    for path in (*folder.iterdir(), *(folder / "additional_chat_templates").glob("*")):
        target = path.resolve()
        if path.is_symlink() and not target.is_relative_to(home) and target.parent != blobs:
            raise BrokenCheckpoint(f"{path} is a link out of its folder. Put the file itself there.")
