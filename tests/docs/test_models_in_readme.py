"""The pages name what files may have here, and no other."""

import re
from pathlib import Path

from caravan.model.blocks import BLOCK_SIZES, NVFP4_WITH_FACTOR
from caravan.model.checkpoint.relatives import table

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"


def test_the_types_of_blocks_in_the_readme_are_those_that_are_read() -> None:
    (row,) = [line for line in README.read_text("utf-8").splitlines() if "docs/models.md" in line and "GGUF in" in line]
    named = re.findall(r"\b(?:I?Q\d_\w+|\w+FP4)\b", row)
    assert named == [*dict.fromkeys(named)]
    assert {*named} == {*BLOCK_SIZES} - {NVFP4_WITH_FACTOR}


def test_the_page_of_models_has_the_table_of_architectures() -> None:
    assert f"\n\n{table()}\n" in (ROOT / "docs/models.md").read_text("utf-8")
