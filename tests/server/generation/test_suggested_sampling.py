"""Where the sampling parameters come from that a request leaves out."""

import json
from pathlib import Path

from caravan.model.sampling.generation_defaults import GenerationDefaults
from caravan.server.generation.suggested_sampling import suggested_sampling


def test_the_default_model_has_those_of_its_card_and_a_folder_its_own(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    assert suggested_sampling("smollm2", tmp_path) == GenerationDefaults(temperature=0.2, top_p=0.9)
    assert suggested_sampling("org/name", tmp_path) == GenerationDefaults(temperature=0.6)
    assert suggested_sampling("a.gguf", tmp_path / "a.gguf") == GenerationDefaults()
