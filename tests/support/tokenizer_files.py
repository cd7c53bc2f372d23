"""Tokenizers in files of other libraries."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import SentencePieceProcessor
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from caravan.model.tokenizer.loader import load_tokenizer
from caravan.model.tokenizer.pre_tokenizer_rules import LLAMA3
from caravan.model.tokenizer.tokenizer import Tokenizer
from tests.model.corpus import corpus
from tests.model.vocabularies import CORPUS, trained_sentencepiece

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level_json(*, adds_bos: bool = False, normalizer: Any = None) -> tokenizers.Tokenizer:
    """Return a trained byte-level tokenizer, as those of Llama 3 and Qwen 2."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*CORPUS, *corpus()[:300]], trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(["<tool>"])
    if adds_bos:
        bos = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return tokenizer


def pieces_json() -> tokenizers.Tokenizer:
    """Return a tokenizer of pieces with byte tokens, as Llama 2's tokenizer.json is one."""
    processor = SentencePieceProcessor(model_proto=trained_sentencepiece())
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    ids = {piece: i for i, piece in enumerate(pieces)}
    scores = [processor.get_score(i) for i in range(len(pieces))]
    pairs = [
        (-scores[ids[piece]], piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids and not processor.is_byte(ids[piece])
    ]
    merges = [(left, right) for _, left, right in sorted(pairs, key=lambda pair: pair[0])]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def write(folder: Path, tokenizer: tokenizers.Tokenizer, **settings: Any) -> Tokenizer:
    """Write the folder's tokenizer files and return what we make of them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


def write_tiktoken(path: Path) -> dict[bytes, int]:
    """Write a file as Meta's Llama 3 has one: the bytes, then what byte pairs of our texts make."""
    trained = byte_level_json()
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    values = dict(zip(_byte_order(), range(256), strict=True))
    assert set(values) == set(symbols)
    ids = json.loads(trained.to_str())["model"]["vocab"]
    merged = [bytes(values[s] for s in text) for text, _ in sorted(ids.items(), key=lambda item: item[1])]
    tokens = [bytes([byte]) for byte in range(256)] + [token for token in merged if len(token) > 1]
    path.write_text("\n".join(f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)) + "\n")
    return {token: rank for rank, token in enumerate(tokens)}


def llama2c_bytes(processor: SentencePieceProcessor) -> bytes:
    """Return a SentencePiece model as llama2.c's tokenizer.py exports it."""
    content = struct.pack("<I", 64)
    for token_id in range(processor.get_piece_size()):
        text = processor.id_to_piece(token_id)
        text = f"\n{text}\n" if token_id in (1, 2) else text.replace("\u2581", " ")
        content += struct.pack("<fi", processor.get_score(token_id), len(text.encode())) + text.encode()
    return content


def _byte_order() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)]
