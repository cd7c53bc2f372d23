"""The guide's table of what relatives of Llama have: all of it, where it is in the code."""

import ast
from dataclasses import fields
from pathlib import Path

import pytest

from caravan.model.checkpoint.relatives import RELATIVES
from caravan.model.config import ModelConfig
from docs.relatives_table import DIFFERENCES, Difference, config_with_everything, table

ROOT = Path(__file__).parents[2]
OF_ALL = {  # what every model has, with other numbers
    *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
    *("max_position", "rope_theta", "tie_embeddings"),
}


def relatives_with(flag: str) -> list[str]:
    """Return the titles in the table's rows for this flag."""
    (row,) = [line.split(" | ") for line in table().splitlines() if f"`{flag}`" in line.split(" | ")[0]]
    return row[1].split("; ")


def test_the_guide_has_the_table() -> None:
    guide = (ROOT / "docs/llama2-from-scratch.md").read_text("utf-8")
    assert f"\n\n{table()}\n" in guide, "write it again: python -m docs.relatives_table"


def test_every_flag_of_a_model_is_in_the_table() -> None:
    named = {flag for difference in DIFFERENCES for flag in difference.flags}
    assert named == {field.name for field in fields(ModelConfig)} - OF_ALL


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.words)
def test_the_line_is_in_the_function_or_class_that_is_named(difference: Difference) -> None:
    source = (ROOT / difference.path).read_text("utf-8")
    name = difference.owner.rpartition(".")[2]
    nodes = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
    ]
    assert any(difference.line in (ast.get_source_segment(source, node) or "") for node in nodes)
    assert "|" not in difference.line  # it would end the cell


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.words)
def test_some_relative_has_it_and_some_has_not(difference: Difference) -> None:
    having = [relative for relative in RELATIVES if difference.is_in(config_with_everything(relative))]
    assert 0 < len(having) < len(RELATIVES)


def test_the_table_names_the_relatives() -> None:
    assert relatives_with("layers_without_rope") == ["SmolLM3"]
    assert relatives_with("attention_soft_cap") == ["Gemma 2"]
    assert relatives_with("has_post_norm") == ["Gemma 2", "Gemma 3, text"]
    assert relatives_with("rms_norm_eps") == ["Granite 3", "Granite 4, dense"]
    assert relatives_with("rotary_dim") == ["Phi-3, Phi-4"]


def test_only_the_name_of_internlm_differs() -> None:
    beyond_scaling = [difference for difference in DIFFERENCES if difference.flags != ("rope_scaling",)]
    plain = {
        relative.title
        for relative in RELATIVES
        if not any(difference.is_in(config_with_everything(relative)) for difference in beyond_scaling)
    }
    assert plain == {"Llama 1 to 3", "InternLM 3"}
