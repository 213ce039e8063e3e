"""Cleaning is exact and total, and tokens are the same everywhere."""

import json
import os
import pickle
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from datasets_manifest.errors import InputError
from datasets_manifest.stream.text import (
    TextTokenizer,
    build_tokenizer,
    clean,
    clean_proper,
    clean_published,
    drop_words,
    join_sentences,
    tokenizer_from_json,
)

# The method's list, written down a second time.
PUBLISHED = list("""·’!"#$%&'()＃！（）*+,-./:;<=>?@，：￥★、…．＞【】［］《》？“”‘[]^_`{|}~。""")
CORPUS = [f"the {colour} postcard of {place} number {n}" for n in range(40) for colour in ("red", "blue")
          for place in ("the sea", "a garden", "Zürich", "東京")]  # fmt: skip

# Pieces that combine into what is hard to clean: marks that hide behind marks.
PIECES = ["#", "@", "http", "https://", "://", "www.", "url", "user", "a", "B", "é", "1", "C", " ", "\t", "\n", "\x00",
          "\x85", "\ufe0f", "\u200d", "\u20e3", "\ud83d", "😀", "👩", "❤", "🇺", "🇸", "🏽", "©", "…", "\\", "_", "‘",
          "漢"]  # fmt: skip
TEXTS = st.text() | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@pytest.mark.parametrize("character", PUBLISHED)
def test_published_cleaning_turns_each_listed_character_into_a_space(character: str) -> None:
    assert clean_published(f"a{character}b") == "a b"
    assert clean_published(f"a{character * 3}b {character} c{character}") == "a b c"
    assert clean_published(character) == ""


def test_published_cleaning_keeps_the_rest() -> None:
    assert len(PUBLISHED) == len(set(PUBLISHED)) == 56
    others = [c for c in map(chr, range(0x21, 0x3100)) if c not in PUBLISHED and not c.isspace()]
    assert clean_published("".join(others)) == "".join(others)
    assert clean_published("back\\slash") == "back\\slash"
    assert clean_published(" a \t\n b  c\u3000d ") == "a b c d"


def test_published_cleaning_destroys_what_proper_cleaning_reads() -> None:
    text = "Look @anna_b: #sunset at https://t.co/aB1?x=1 😀!"
    assert clean_published(text) == "Look anna b sunset at https t co aB1 x 1 😀"
    assert clean_proper(text) == "Look user : sunset at url grinning face !"
    assert [clean(text, how) for how in ("published", "proper", "none")] == [
        clean_published(text),
        clean_proper(text),
        text,
    ]


@pytest.mark.parametrize(("text", "wanted"), [
    ("#love#cute ##art", "love cute art"),
    ("C# is # 1", "C# is # 1"),
    ("WWW.Example.com, http://x.y/#part", "url url"),
    ("mail me@home.org or @me", "mail me@home.org or user"),
    ("awww.no @a@b", "awww.no user"),
    ("see(http://x.y)", "see( url"),
    ("https://x.y/😀 👍🏽", "url grinning face thumbs up medium skin tone"),
    ("I ❤️ it", "I red heart it"),
    ("👨\u200d👩\u200d👧 1️⃣ 🇨🇭", "family man woman girl keycap 1 Switzerland"),
    ("h\x00ttp://x.y \x1b[0m a\tb\r\nc", "url [0m a b c"),
    ("half \ud83d pair", "half pair"),
    ("", ""), (" \n ", ""),
])  # fmt: skip
def test_proper_cleaning(text: str, wanted: str) -> None:
    assert clean_proper(text) == wanted


@settings(max_examples=1000)
@given(TEXTS)
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    for how in (clean_published, clean_proper):
        once = how(text)
        assert how(once) == once == " ".join(once.split())
    assert not set(clean_published(text)) & set(PUBLISHED)
    assert not {unicodedata.category(c) for c in clean_proper(text)} & {"Cc", "Cs"}


def test_words_are_dropped_with_their_probability() -> None:
    words = [f"w{i}" for i in range(4000)]
    kept = drop_words(" ".join(words), 0.1, np.random.default_rng(0)).split()
    assert len(kept) == pytest.approx(3600, abs=80)
    assert kept == sorted(set(kept), key=words.index)
    assert drop_words(" ".join(words), 0.1, np.random.default_rng(0)).split() == kept


@given(TEXTS, st.floats(0, 1), st.integers(0, 100))
def test_some_word_always_stays(text: str, p: float, seed: int) -> None:
    kept = drop_words(text, p, np.random.default_rng(seed)).split()
    assert bool(kept) == bool(text.split()) and set(kept) <= set(text.split())
    assert len(drop_words(text, 1.0, np.random.default_rng(seed)).split()) == min(1, len(text.split()))
    assert drop_words(text, 0.0, np.random.default_rng(seed)).split() == text.split()


def test_the_word_that_stays_is_any() -> None:
    stayed = {drop_words("a b c", 1.0, np.random.default_rng(seed)) for seed in range(50)}
    assert stayed == {"a", "b", "c"}


def test_sentences_are_joined() -> None:
    assert join_sentences(["a b", "c"], "published", "[SEP]", "[CLS]") == "[CLS] a b [SEP] c [SEP]"
    assert join_sentences(["a b", "c"], "plain", "</s>", "<s>") == "a b </s> c"
    assert join_sentences(["a"], "plain", "[SEP]", "[CLS]") == "a"
    assert join_sentences(["a"], "published", "[SEP]", "[CLS]") == "[CLS] a [SEP]"
    assert join_sentences([], "published", "[SEP]", "[CLS]") == "[CLS]"


@pytest.fixture(scope="module")
def built() -> str:
    return build_tokenizer(CORPUS, vocab_size=300)


def tokenizer(json_text: str, max_tokens: int = 200) -> TextTokenizer:
    return TextTokenizer(json_text, max_tokens, "[CLS]", "[SEP]", "[PAD]")


def tokens(built: str, ids: np.ndarray) -> list[str]:
    names = {number: token for token, number in json.loads(built)["model"]["vocab"].items()}
    return [names[int(number)] for number in ids]


def test_tokens_are_cut_with_their_special_tokens(built: str) -> None:
    text = "the red postcard of the sea number 7"
    (whole,) = tokenizer(built).encode([text])
    assert whole.dtype == np.int32 and tokens(built, whole) == ["[CLS]", *text.split(), "[SEP]"]
    for most in range(3, 12):
        (short,) = tokenizer(built, most).encode([text])
        assert len(short) == min(most, len(whole))
        assert list(short) == [*whole[: len(short) - 1], whole[-1]]


def test_published_form_has_two_class_tokens_and_two_separators_at_its_end(built: str) -> None:
    joined = join_sentences(["red", "blue"], "published", "[SEP]", "[CLS]")
    assert tokens(built, tokenizer(built).encode([joined])[0]) == [
        "[CLS]",
        "[CLS]",
        "red",
        "[SEP]",
        "blue",
        "[SEP]",
        "[SEP]",
    ]


def test_texts_of_a_batch_are_encoded_each_for_itself(built: str) -> None:
    texts = ["the red postcard", "", "sea " * 500, "half \ud83d pair", "Zürich ZÜRICH 東京 ☃"]
    together = tokenizer(built, 50).encode(texts)
    assert [len(ids) for ids in together][:3] == [5, 2, 50]
    for text, ids in zip(texts, together, strict=True):
        assert np.array_equal(ids, tokenizer(built, 50).encode([text])[0])
    names = tokens(built, together[4])
    assert names[1:3] == ["zurich", "zurich"] and names[-2] == "[UNK]"
    assert tokenizer(built).encode([]) == []


@settings(max_examples=50)
@given(texts=st.lists(TEXTS, max_size=5))
def test_any_text_can_be_encoded(texts: list[str], built: str) -> None:
    encoder = tokenizer_from_json(built, 20, "[CLS]", "[SEP]", "[PAD]")
    for ids in encoder.encode(texts):
        assert 2 <= len(ids) <= 20 and ids.min() >= 0 and ids.max() < encoder.vocab_size


def test_properties_and_cache(built: str) -> None:
    encoder = tokenizer(built)
    vocab = json.loads(built)["model"]["vocab"]
    assert encoder.pad_id == vocab["[PAD]"] == 0 and encoder.vocab_size == len(vocab) <= 300
    same = tokenizer_from_json(built, 200, "[CLS]", "[SEP]", "[PAD]")
    assert same is tokenizer_from_json("".join(list(built)), 200, "[CLS]", "[SEP]", "[PAD]")
    assert same is not tokenizer_from_json(built, 100, "[CLS]", "[SEP]", "[PAD]")
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    copied = pickle.loads(pickle.dumps(encoder))
    assert np.array_equal(copied.encode(["a red sea"])[0], encoder.encode(["a red sea"])[0])


@pytest.mark.parametrize(("changes", "field"), [
    ({"json": "{}"}, "tokenizer"), ({"json": "no"}, "tokenizer"), ({"pad_token": "<pad>"}, "pad_token"),
    ({"sep_token": "</s>"}, "sep_token"), ({"cls_token": "<s>"}, "cls_token"), ({"max_tokens": 2}, "data.texts.max_tokens"),
])  # fmt: skip
def test_wrong_tokenizers_are_refused(built: str, changes: dict[str, object], field: str) -> None:
    good = {"json": built, "max_tokens": 10, "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    with pytest.raises(InputError) as caught:
        TextTokenizer(**{**good, **changes})  # type: ignore[arg-type]
    assert caught.value.field == field


def test_padding_and_truncation_of_the_file_are_not_used(built: str) -> None:
    other = Tokenizer.from_str(built)
    other.enable_padding(length=32)
    other.enable_truncation(max_length=4)
    assert [len(ids) for ids in tokenizer(other.to_str()).encode(["red " * 8, "red"])] == [10, 3]


def test_the_same_texts_give_the_same_tokenizer_in_every_process(built: str) -> None:
    assert build_tokenizer(iter(CORPUS), vocab_size=300) == built
    code = (
        f"from datasets_manifest.stream.text import build_tokenizer; print(build_tokenizer({CORPUS!r}, vocab_size=300))"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == built
    assert build_tokenizer(CORPUS[1:], vocab_size=100) != build_tokenizer(CORPUS, vocab_size=120)


def test_only_the_special_tokens_are_special(built: str) -> None:
    added = json.loads(built)["added_tokens"]
    assert [(token["content"], token["id"]) for token in added] == [
        ("[PAD]", 0), ("[UNK]", 1), ("[CLS]", 2), ("[SEP]", 3), ("[MASK]", 4),
    ]  # fmt: skip
    assert all(token["special"] for token in added)


def test_rare_alphabets_do_not_fill_the_vocabulary() -> None:
    many = build_tokenizer([chr(0x4E00 + n) + "word" for n in range(1000)], vocab_size=200)
    assert tokenizer(many).vocab_size <= 200
    assert tokens(many, tokenizer(many).encode(["word"])[0])[1:-1] == ["word"]
    assert tokenizer(build_tokenizer([])).vocab_size == 5
