"""PreTokenizerRules: how a byte-level vocabulary in a GGUF file splits a text, by the name in `tokenizer.ggml.pre`."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from caravan.model.tokenizer.vocabulary import UnsupportedTokenizer

# Each pattern splits the pieces of the one before. Only merges inside a piece are made. Source: the
# tokenizer.json files of the models; llama.cpp, src/llama-vocab.cpp, names them.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (  # words with their contractions, numbers of up to three digits
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizerRules:
    """The rules that the name of a pre-tokenizer stands for in llama.cpp."""

    patterns: tuple[str, ...]
    ignores_merges: bool = False  # a piece that is a token stays whole, even if no merge makes it
    adds_bos: bool = False  # if the file does not state it

    def pre_tokenizer(self) -> PreTokenizer:
        """Return the pre-tokenizer of the library."""
        splits: list[PreTokenizer] = [Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])


_RULES: Mapping[str, PreTokenizerRules] = MappingProxyType(
    {
        "gpt-2": PreTokenizerRules((_GPT2,)),
        "smollm": PreTokenizerRules((r"\p{N}", _GPT2)),
        "llama-bpe": PreTokenizerRules((LLAMA3,), ignores_merges=True, adds_bos=True),
        "qwen2": PreTokenizerRules((LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),)),
        "tekken": PreTokenizerRules((_TEKKEN,), ignores_merges=True, adds_bos=True),  # Mistral, since NeMo
        "gpt-4o": PreTokenizerRules((_O200K,)),  # gpt-oss
        # The rules of llama.cpp for models whose pre-tokenizer its converter did not know.
        "default": PreTokenizerRules((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
        "smaug-bpe": PreTokenizerRules((LLAMA3,)),
    }
)
# Converters have a name for each model they know. Source: llama.cpp, src/llama-vocab.cpp, llama_vocab::impl::load.
_OTHER_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gpt-2": (
            *("phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0", "mellum"),
            *("modern-bert", "exaone4", "mpt", "olmo", "jais", "trillion", "granite-docling"),
        ),
        "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
        "llama-bpe": (*("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),),
        "qwen2": (*("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),),
        "smaug-bpe": ("dbrx", "glm4", "chatglm-bpe"),
    }
)


def pre_tokenizer_rules(name: str) -> PreTokenizerRules:
    """Return the rules of a name; raises UnsupportedTokenizer."""
    for own, others in _OTHER_NAMES.items():
        if name in others:
            return _RULES[own]
    if name not in _RULES:
        raise UnsupportedTokenizer(
            f"The tokenizer has the pre-tokenizer {ascii(name)[:80]}; supported are {', '.join(_RULES)} and the other "
            "names that converters have for these."
        )
    return _RULES[name]
