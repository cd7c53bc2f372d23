"""Added tokens of a tokenizer.json: each rule the file states gives the ids that its own library gives."""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken as LibraryToken
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from caravan.model.tokenizer.added_tokens import AddedToken, AddedTokens, TextPart
from caravan.model.tokenizer.huggingface_vocabulary import HuggingFaceVocabulary
from caravan.model.tokenizer.loader import load_tokenizer
from caravan.model.tokenizer.tokenizer import Tokenizer, UnsupportedTokenizer
from caravan.model.tokenizer.vocabulary import BrokenTokenizer, Unencodable
from tests.model.vocabularies import CORPUS, GUARD
from tests.support.extent import extent
from tests.support.tokenizer_files import byte_level_json, pieces_json, write

SPACE = "\u2581"
CONTENTS = ["<s>", "<|a|>", "[b]", "tool", "tools", "do", "<s>x", " y", "word\n", "\u00e9t\u00e9"]
PIECES = [*CONTENTS, " ", "  ", "\t", "\n", "\u3000", "a", "hello", "x", "_", "1", "<", "|", SPACE, "\u200d", "e\u0301"]


OVERLAPPING = ("<s>x", " y", "word\n", "tools", "do")


def metaspace_json(scheme: str) -> tokenizers.Tokenizer:
    """Return a tokenizer of pieces whose pre-tokenizer writes the spaces, as newer Llama files have it."""
    tokenizer = pieces_json()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    return tokenizer


def unigram_json() -> tokenizers.Tokenizer:
    """Return a Unigram tokenizer with a token for each byte."""
    texts = sorted({*"".join(CORPUS).replace(" ", SPACE), SPACE + "the", "hello", SPACE + "he", "ll", "o" + SPACE})
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -20.0) for byte in range(256))]
    pieces += [(text, -2.0 - 0.1 * index) for index, text in enumerate(texts)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


KINDS = {
    "byte level": byte_level_json,
    "byte level, NFC": lambda: byte_level_json(normalizer=normalizers.NFC()),
    "pieces": pieces_json,
    "metaspace first": lambda: metaspace_json("first"),
    "metaspace always": lambda: metaspace_json("always"),
    "metaspace never": lambda: metaspace_json("never"),
    "unigram": unigram_json,
}


def random_tokens(draw: random.Random) -> list[LibraryToken]:
    """Return some added tokens with random rules."""
    return [
        LibraryToken(
            content,
            lstrip=draw.random() < 0.4,
            rstrip=draw.random() < 0.4,
            single_word=draw.random() < 0.3,
            normalized=draw.random() < 0.4,
            special=draw.random() < 0.6,
        )
        for content in draw.sample(CONTENTS, draw.randint(1, len(CONTENTS)))
    ]


def opened(folder: Path, library: tokenizers.Tokenizer, tokens: Sequence[LibraryToken]) -> Tokenizer:
    """Write the library's tokenizer with these tokens, and return ours."""
    for token in tokens:
        library.add_tokens([token])
    return write(folder, library, bos_token=None, eos_token=None)


def random_text(draw: random.Random) -> str:
    return "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 14)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_texts_with_added_tokens_have_the_ids_of_the_library(tmp_path: Path, kind: str) -> None:
    draw = random.Random(5)
    num_opened = 0
    for _ in range(extent(40, 15)):
        library, tokens = KINDS[kind](), random_tokens(draw)
        try:
            ours = opened(tmp_path, library, tokens)
        except UnsupportedTokenizer as error:  # a special token that NFC could make of other text
            assert "with `normalized`" in str(error)
            continue
        num_opened += 1
        library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        for _ in range(60):
            text = random_text(draw)
            for parses in (True, False):
                library.encode_special_tokens = not parses
                expected = library.encode(text, add_special_tokens=False).ids
                ids = ours.encode(text, add_special_tokens=False, parse_special=parses)
                assert ids == expected, (kind, parses, text, tokens)
    assert num_opened > 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_guarded_special_tokens_are_text_and_all_others_follow_the_file(tmp_path: Path, kind: str) -> None:
    """The oracle is a file without the special tokens that the user wrote."""
    draw = random.Random(6)
    for _ in range(extent(40, 15)):
        tokens = [token for token in random_tokens(draw) if token.content not in OVERLAPPING]
        mine = [token for token in tokens if not token.special or draw.random() < 0.5]
        users = [token.content for token in tokens if token not in mine]
        library = KINDS[kind]()
        for text in ("<s>", "</s>", "<unk>"):  # not there twice, once as the file's own
            if text in users:
                users.remove(text)
        oracle = KINDS[kind]()
        for token in mine:
            oracle.add_tokens([token])
        try:
            ours = opened(tmp_path, library, tokens)
        except UnsupportedTokenizer:
            continue
        for _ in range(40):
            text = random_text(draw)
            if any(special in text for special in ("<s>",)) and "<s>" not in [token.content for token in mine]:
                continue
            guarded = text
            for content in users:
                guarded = guarded.replace(content, content[0] + GUARD + content[1:])
            if any(content in guarded for content in users):
                continue  # tokens that overlap
            oracle.encode_special_tokens = False
            expected = [oracle.id_to_token(i) for i in oracle.encode(text, add_special_tokens=False).ids]
            ids = ours.encode(guarded, add_special_tokens=False, parse_special=True, guard=GUARD)
            assert [library.id_to_token(i) for i in ids] == expected, (kind, guarded, tokens, users)


def test_white_space_beside_the_special_tokens_of_phi_has_no_tokens_of_its_own(tmp_path: Path) -> None:
    tokens = [
        LibraryToken("<|user|>", special=True, rstrip=True),
        LibraryToken("<|im_sep|>", special=True, lstrip=True, rstrip=True),
    ]
    ours = opened(tmp_path, byte_level_json(), tokens)
    user, separator = (ours.special_tokens[token.content] for token in tokens)
    assert ours.encode("<|user|>\n  ", parse_special=True) == [user]
    assert ours.encode("hello <|im_sep|>\nhello", parse_special=True) == [
        *ours.encode("hello"),
        separator,
        *ours.encode("hello"),
    ]
    assert separator not in ours.encode("hello <|im_sep|>\nhello")


def test_a_guard_keeps_white_space_of_a_message_out_of_a_special_token(tmp_path: Path) -> None:
    ours = opened(tmp_path, byte_level_json(), [LibraryToken("<|x|>", special=True, lstrip=True, rstrip=True)])
    guarded = ours.encode(f"a  <{GUARD}|x|>  b", parse_special=True, guard=GUARD)
    assert guarded == ours.encode("a  <|x|>  b")
    assert ours.special_tokens["<|x|>"] not in guarded


def test_the_unknown_token_in_a_message_is_text_and_a_token_in_a_template(tmp_path: Path) -> None:
    ours = write(tmp_path, pieces_json())
    assert "<unk>" in ours.special_tokens
    assert ours.encode("<unk>", parse_special=True) == [0]
    assert 0 not in ours.encode(f"<{GUARD}unk>", parse_special=True, guard=GUARD)


@pytest.mark.parametrize(
    "normalizer",
    [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("#", "<"), normalizers.Strip()],
    ids=["NFKC", "Lowercase", "Replace", "Strip"],
)
def test_a_special_token_that_other_text_could_become_is_refused(tmp_path: Path, normalizer: Any) -> None:
    with pytest.raises(UnsupportedTokenizer, match=r"'<x>' with `normalized`, though its normalizer"):
        opened(tmp_path, byte_level_json(normalizer=normalizer), [LibraryToken("<x>", special=True, normalized=True)])
    opened(tmp_path, byte_level_json(normalizer=normalizer), [LibraryToken("<y>", special=True, normalized=False)])


def test_nfc_makes_no_other_ascii_of_other_text(tmp_path: Path) -> None:
    import unicodedata

    made = {
        unicodedata.normalize("NFC", chr(code))
        for code in range(128, sys.maxunicode + 1)
        if unicodedata.normalize("NFC", chr(code)).isascii()
    }
    assert made == {";", "`", "K"}
    nfc = normalizers.NFC()
    opened(tmp_path, byte_level_json(normalizer=nfc), [LibraryToken("<x>", special=True, normalized=True)])
    with pytest.raises(UnsupportedTokenizer, match="NFC could produce it"):
        opened(tmp_path, byte_level_json(normalizer=nfc), [LibraryToken("<K>", special=True, normalized=True)])


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True}, "decoder with.*WordPiece"),
        ("decoder", {"type": "Replace", "pattern": {"String": "_"}, "content": " "}, "decoder with.*Replace"),
        ("decoder", {"type": "Fuse"}, "a decoder of .'Fuse'"),
        ("model.dropout", 0.5, "model with `dropout`"),
        ("model.end_of_word_suffix", "</w>", "model with `end_of_word_suffix`"),
    ],
)
def test_a_rule_that_is_not_followed_is_refused_by_name(tmp_path: Path, part: str, value: Any, words: str) -> None:
    fields = json.loads(byte_level_json().to_str())
    *path, name = part.split(".")
    (fields[path[0]] if path else fields)[name] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(UnsupportedTokenizer, match=words):
        load_tokenizer(tmp_path)


def test_truncation_and_padding_in_the_file_are_off(tmp_path: Path) -> None:
    library = byte_level_json()
    library.enable_truncation(4)
    library.enable_padding(length=64)
    ours = write(tmp_path, library)
    assert ours.decode(ours.encode("hello world " * 20)) == "hello world " * 20


def test_the_post_processor_has_the_tokens_before_and_after_a_text(tmp_path: Path) -> None:
    library = byte_level_json()
    bos, eos = library.token_to_id("<s>"), library.token_to_id("</s>")
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", bos), ("</s>", eos)]
    )
    ours = write(tmp_path, library, bos_token=None)  # whatever the other file leaves out
    assert ours.encode("hello") == library.encode("hello").ids
    assert ours.encode("", parse_special=True) == library.encode("").ids == [bos, eos]
    assert ours.encode("hello", is_open=True) == library.encode("hello").ids[:-1]
    assert ours.encode("hello", add_special_tokens=False) == library.encode("hello", add_special_tokens=False).ids


def test_a_post_processor_that_leaves_the_text_out_is_refused(tmp_path: Path) -> None:
    library = byte_level_json(adds_bos=True)
    fields = json.loads(library.to_str())
    fields["post_processor"]["single"] = [{"SpecialToken": {"id": "<s>", "type_id": 0}}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(UnsupportedTokenizer, match="a post_processor that does more"):
        load_tokenizer(tmp_path)


def test_flags_in_the_tokenizer_config_win_and_the_difference_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = byte_level_json()
    start = library.token_to_id("<|im_start|>")
    decoder = {str(start): {"content": "<|im_start|>", "special": True, "normalized": False, "rstrip": True}}
    ours = write(tmp_path, library, added_tokens_decoder=decoder)
    assert ours.encode("<|im_start|>  a", parse_special=True) == [start, *ours.encode("a")]
    assert "state different rules for 1 added tokens, among them '<|im_start|>'" in caplog.text


def test_an_id_that_the_library_numbers_otherwise_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields = json.loads(byte_level_json().to_str())
    fields["added_tokens"][-1]["id"] = 9000
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    ours = load_tokenizer(tmp_path)
    assert ours.encode("<tool>") == [tokenizers.Tokenizer.from_str(json.dumps(fields)).token_to_id("<tool>")]
    assert "states the id 9000 for the added token '<tool>'" in caplog.text


def test_an_added_token_twice_is_refused(tmp_path: Path) -> None:
    fields = json.loads(byte_level_json().to_str())
    fields["added_tokens"].append({**fields["added_tokens"][-1], "id": 505, "rstrip": True})
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(BrokenTokenizer, match="an added token twice"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_that_would_lose_characters_in_silence_is_refused(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer(models.BPE(vocab={SPACE: 0, "a": 1}, merges=[]))
    library.decoder = decoders.Metaspace()
    with pytest.raises(BrokenTokenizer, match="neither an unknown token nor a token for each byte"):
        write(tmp_path, library, bos_token=None, eos_token=None)


def test_a_character_without_a_token_is_named_in_a_long_text_at_once(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    ours = write(tmp_path, library, bos_token=None, eos_token=None)
    with pytest.raises(Unencodable, match=r"U\+0063"):
        ours.encode("ab" * 200_000 + "c")


@pytest.mark.slow
def test_every_character_before_a_token_is_of_a_word_or_not_as_in_the_library() -> None:
    library = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    library.add_tokens([LibraryToken("@", single_word=True, normalized=False)])
    ours = AddedTokens([AddedToken(text="@", token_id=1, is_special=False, is_whole_word=True)])
    characters = [chr(code) for code in range(1, 0x3100) if chr(code) != "@"]
    different = [
        character
        for character in characters
        if (1 in library.encode(character + "@").ids) != (1 in list(ours.split(character + "@", parse_special=True)))
    ]
    assert len(different) < 0.002 * len(characters), different  # letters that are new in one of two Unicode versions


@given(st.text(alphabet="ab<>| \n" + GUARD, max_size=30))
@settings(max_examples=300, deadline=None)
def test_parts_and_tokens_are_the_text_without_guards(text: str) -> None:
    tokens = ["<a>", "<a>b", "a|", "|"]
    added = AddedTokens([AddedToken(text=t, token_id=i, is_special=i != 2) for i, t in enumerate(tokens)])
    parts = list(added.split(text, parse_special=True, guard=GUARD))
    joined = "".join(tokens[part] if isinstance(part, int) else part.text for part in parts)
    assert joined == text.replace(GUARD, "")
    for part in parts:
        assert isinstance(part, int) or part.guarded(GUARD).replace(GUARD, "") == part.text


def test_added_tokens_take_spaces_and_whole_words_as_their_rules_say() -> None:
    tokens = AddedTokens(
        [
            AddedToken(text="<a>", token_id=1, is_special=False, takes_space_before=True),
            AddedToken(text="<b>", token_id=2, is_special=False, takes_space_after=True),
            AddedToken(text="word", token_id=3, is_special=False, is_whole_word=True),
            AddedToken(text="<s>", token_id=4, is_special=True),
        ]
    )

    def split(text: str, *, parse_special: bool = True) -> list[int | str]:
        parts = tokens.split(text, parse_special=parse_special)
        return [part if isinstance(part, int) else part.text for part in parts]

    assert split("x  <a> y") == ["x", 1, " y"]
    assert split("<b>  <a>x") == [2, 1, "x"]
    assert split("word words sword, word") == [3, " words sword, ", 3]
    assert split("a<s>b") == ["a", 4, "b"]
    assert split("a<s>b", parse_special=False) == ["a<s>b"]


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=["plain", "NFC"])
def test_a_guard_hides_special_tokens_of_the_normalized_text(tmp_path: Path, normalizer: Any) -> None:
    special = LibraryToken("<x>", special=True, normalized=True)
    ours = opened(tmp_path, byte_level_json(normalizer=normalizer), [special])
    token_id = ours.special_tokens["<x>"]
    assert ours.encode("a<x>b", parse_special=True).count(token_id) == 1
    guarded = ours.encode(f"a<x><{GUARD}x>b", parse_special=True, guard=GUARD)
    assert guarded.count(token_id) == 1
    assert ours.decode(guarded, skip_special=False) == "a<x><x>b"


def test_a_guard_hides_one_token_and_not_the_next_that_overlaps_it() -> None:
    added = AddedTokens([AddedToken(text=t, token_id=i, is_special=True) for i, t in enumerate(["<a<b>", "<b>"])])
    parts = list(added.split(f"<{GUARD}a<b>", parse_special=True, guard=GUARD))
    assert parts == [TextPart("<a", is_start=True, guards=(1,)), 1]


def test_one_model_serves_every_part(tmp_path: Path) -> None:
    byte_level_json().save(str(tmp_path / "tokenizer.json"))
    vocabulary = HuggingFaceVocabulary(tmp_path / "tokenizer.json")
    assert vocabulary.encode("hello") == vocabulary.encode_parsed("hello", "")
