"""Damaged files of every format: one typed error in one line, at once; never a crash, a hang or another shape."""

import random
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.config import UnsupportedModel
from caravan.model.tokenizer.loader import load_tokenizer
from caravan.model.tokenizer.tokenizer import BrokenTokenizer, UnsupportedTokenizer
from tests.model.checkpoint.published_formats import write_llama2c, write_meta
from tests.model.oracle import load_checkpoint
from tests.model.vocabularies import trained_sentencepiece
from tests.support.extent import extent
from tests.support.float4_folders import NF4_CONFIG, nf4, nvfp4
from tests.support.gguf_files import write_tiny_llama
from tests.support.quantized_folders import write_folder
from tests.support.tokenizer_files import byte_level_json, llama2c_bytes, write_tiktoken
from tests.support.transformers_models import random_model

pytestmark = pytest.mark.slow

NUM_MUTATIONS = extent(300, 100)
TYPED = (BrokenCheckpoint, UnsupportedModel, BrokenTokenizer, UnsupportedTokenizer)
META = {"intermediate_size": 128, "rms_norm_eps": 1e-5}


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Return the content with one thing wrong, most often near the beginning, where counts and sizes stand."""
    changed = bytearray(content)
    size = len(content)
    at = int(size * draw.random() ** draw.choice([1, 4, 12]))
    match draw.choice(["cut", "flip", "flip", "number", "fill", "delete", "repeat", "empty tail"]):
        case "cut":
            del changed[at:]
        case "flip":
            for _ in range(draw.choice([1, 1, 8, 64])):
                changed[min(size - 1, at + draw.randrange(64))] ^= 1 << draw.randrange(8)
        case "number":
            value = draw.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1])
            changed[at : at + 8] = struct.pack("<Q", value)[: max(1, min(8, size - at))]
        case "fill":
            changed[at : at + draw.randrange(1, 200)] = bytes([draw.choice([0, 0x20, 0x7F, 0xFF])]) * draw.randrange(
                1, 200
            )
        case "delete":
            del changed[at : at + draw.randrange(1, 100)]
        case "repeat":
            changed[at:at] = changed[at : at + draw.randrange(1, 5000)]
        case "empty tail":
            changed[at:] = bytes(size - at)
    return bytes(changed)


def gguf(folder: Path) -> tuple[Path, Path]:
    write_tiny_llama(folder / "m.gguf")
    return folder / "m.gguf", folder / "m.gguf"


def safetensors(folder: Path) -> tuple[Path, Path]:
    random_model("Llama").save_pretrained(folder)
    return folder, folder / "model.safetensors"


def bitsandbytes(folder: Path) -> tuple[Path, Path]:
    write_folder(folder, NF4_CONFIG, nf4(is_nested=True))
    return folder, folder / "model.safetensors"


def modelopt(folder: Path) -> tuple[Path, Path]:
    write_folder(folder, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, nvfp4(is_modelopt=True))
    return folder, folder / "model.safetensors"


def config_json(folder: Path) -> tuple[Path, Path]:
    random_model("Qwen2", use_sliding_window=True, sliding_window=20).save_pretrained(folder)
    return folder, folder / "config.json"


def index_json(folder: Path) -> tuple[Path, Path]:
    random_model("Llama").save_pretrained(folder, max_shard_size="60KB")
    return folder, folder / "model.safetensors.index.json"


def pth(folder: Path) -> tuple[Path, Path]:
    write_meta(folder, random_model("Llama", **META), num_shards=2)
    return folder, folder / "consolidated.01.pth"


def params_json(folder: Path) -> tuple[Path, Path]:
    write_meta(folder, random_model("Llama", **META), use_scaled_rope=True)
    return folder, folder / "params.json"


def llama2c_0(folder: Path) -> tuple[Path, Path]:
    write_llama2c(folder / "m.bin", random_model("Llama", **META), version=0)
    return folder / "m.bin", folder / "m.bin"


def llama2c_2(folder: Path) -> tuple[Path, Path]:
    write_llama2c(folder / "m.bin", random_model("Llama", **META), version=2)
    return folder / "m.bin", folder / "m.bin"


def tokenizer_json(folder: Path) -> tuple[Path, Path]:
    byte_level_json().save(str(folder / "tokenizer.json"))
    return folder, folder / "tokenizer.json"


def tokenizer_model(folder: Path) -> tuple[Path, Path]:
    (folder / "tokenizer.model").write_bytes(trained_sentencepiece())
    return folder, folder / "tokenizer.model"


def tiktoken(folder: Path) -> tuple[Path, Path]:
    write_tiktoken(folder / "tokenizer.model")
    return folder, folder / "tokenizer.model"


def tokenizer_bin(folder: Path) -> tuple[Path, Path]:
    content = llama2c_bytes(SentencePieceProcessor(model_proto=trained_sentencepiece()))
    (folder / "tokenizer.bin").write_bytes(content)
    return folder / "m.bin", folder / "tokenizer.bin"


CHECKPOINTS = [
    gguf,
    safetensors,
    bitsandbytes,
    modelopt,
    config_json,
    index_json,
    pth,
    params_json,
    llama2c_0,
    llama2c_2,
]
TOKENIZERS = [gguf, tokenizer_json, tokenizer_model, tiktoken, tokenizer_bin]


def survive(write: Callable[[Path], tuple[Path, Path]], load: Callable[[Path], object], folder: Path) -> int:
    """Load every mutation and return how many were refused; everything else must be a model of the same shape."""
    path, poisoned = write(folder)
    expected = load(path)
    content = poisoned.read_bytes()
    draw = random.Random(11)
    num_refused = 0
    for number in range(NUM_MUTATIONS):
        poisoned.write_bytes(mutated(content, draw))
        start = time.monotonic()
        try:
            found = load(path)
        except TYPED as error:
            num_refused += 1
            assert "\n" not in str(error), number
            assert len(str(error)) < 600, number
        except OSError as error:  # a file that is named by another one
            num_refused += 1
            assert error.filename is not None, number
        else:
            assert found == expected, number
        assert time.monotonic() - start < 2, number
    poisoned.write_bytes(content)
    assert load(path) == expected
    return num_refused


@pytest.mark.parametrize("write", CHECKPOINTS, ids=lambda write: write.__name__)
def test_threat_25_a_damaged_checkpoint_is_a_typed_error_or_a_whole_model(
    write: Callable[[Path], tuple[Path, Path]], tmp_path: Path
) -> None:
    def load(path: Path) -> object:
        model = load_checkpoint(path, max_position=16)
        return {name: weight.shape for name, weight in model.named_parameters()}

    assert survive(write, load, tmp_path) > NUM_MUTATIONS / 4


@pytest.mark.parametrize("write", TOKENIZERS, ids=lambda write: write.__name__)
def test_a_damaged_tokenizer_is_a_typed_error_or_a_tokenizer(
    write: Callable[[Path], tuple[Path, Path]], tmp_path: Path
) -> None:
    def load(path: Path) -> object:
        tokenizer = load_tokenizer(path)
        try:
            token_ids = tokenizer.encode("hello 世界")
        except ValueError:  # a character it lost
            return True
        return all(0 <= token_id < tokenizer.vocab_size for token_id in token_ids)

    assert survive(write, load, tmp_path) > NUM_MUTATIONS / 10


def test_swapped_shards_with_other_shapes_are_rejected(tmp_path: Path) -> None:
    random_model("Llama").save_pretrained(tmp_path, max_shard_size="60KB")
    first, second, *_ = sorted(tmp_path.glob("*.safetensors"))
    shutil.copy(first, second)
    with pytest.raises(BrokenCheckpoint, match="too"):
        load_checkpoint(tmp_path)
