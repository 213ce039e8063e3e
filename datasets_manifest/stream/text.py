"""Texts: cleaning, joining, dropping words, and tokens.

Runs inside data tasks, so it needs the `tokenizers` library only, and neither transformers nor torch.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal

# Each task owns one core. Read by the library when it first encodes, so it must be set before.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import emoji
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from datasets_manifest.errors import InputError

Cleaning = Literal["published", "proper", "none"]
Joining = Literal["published", "plain"]

PUBLISHED_CHARACTERS = (
    "·’!\"#$%&'()＃！（）*+,-./:;<=>?@，：￥★、…．＞【】［］《》？“”‘[]^_`{|}~。"  # the backslash is not one of them
)
_PUBLISHED = re.compile(f"[{re.escape(PUBLISHED_CHARACTERS)}]+")

# Control characters except white space, and halves of surrogate pairs, which no UTF-8 text can hold.
_UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
_EMOJI_VARIANT = "\ufe0f"
_URL = re.compile(r"https?://\S+|(?<!\w)www\.\S+", re.IGNORECASE)
_HASH = re.compile(r"#+(?=\w)")
_USER = re.compile(r"(?<!\w)(?:@\w+)+")


def clean(text: str, how: Cleaning) -> str:
    """One sentence cleaned in one of the three ways; "none" gives it back as it is."""
    if how == "published":
        return clean_published(text)
    return clean_proper(text) if how == "proper" else text


def clean_published(text: str) -> str:
    """Runs of the listed characters become one space; white space is folded and stripped.

    Hashtags, users and URLs lose their marks and keep their letters, as in the published code: "#a @b" gives "a b".
    """
    return " ".join(_PUBLISHED.sub(" ", text).split())


def clean_proper(text: str) -> str:
    """Emoji to their English names, URLs to "url", @names to "user", hashtags to their words; white space folded.

    Control characters go first (they could hide an "h\\0ttp"), emoji next (they would else be part of a URL), hashtags
    before users, so that no step makes work for an earlier one: cleaning twice is cleaning once.
    """
    text = _UNPRINTABLE.sub("", text)
    if not text.isascii():
        text = emoji.replace_emoji(text.replace(_EMOJI_VARIANT, ""), replace=_emoji_words)
    text = _URL.sub(" url ", text)
    text = _HASH.sub(" ", text)
    text = _USER.sub(" user ", text)
    return " ".join(text.split())


def _emoji_words(_: str, data: dict[str, Any]) -> str:
    return f" {data['en'].strip(':').replace('_', ' ')} "


def drop_words(text: str, p: float, rng: np.random.Generator) -> str:
    """Each word between white space is dropped with probability `p`; of a text with words, one at least stays."""
    words = text.split()
    if not words:
        return text
    kept = rng.random(len(words)) >= p
    if not kept.any():
        kept[rng.integers(len(words))] = True
    return " ".join(word for word, keep in zip(words, kept, strict=True) if keep)


def join_sentences(sentences: Sequence[str], how: Joining, sep_token: str, cls_token: str) -> str:
    """One text from a sample's sentences.

    "plain": the separator token between them, or a blank where the tokenizer has none. "published": the class token in front
    and the separator after every sentence, the last one too. The tokenizer adds its own special tokens to either, so
    that the published form begins with two class tokens and ends with two separators, as the published code has it.
    """
    if how == "published":
        return " ".join([cls_token, *(f"{sentence} {sep_token}" for sentence in sentences)])
    return (f" {sep_token} " if sep_token else " ").join(sentences)


class TextTokenizer:
    """Token ids of texts, by a tokenizer in the `tokenizers` library's JSON form.

    Args:
        json: the content of a tokenizer.json.
        max_tokens: the most tokens of a text, its special tokens included.
        cls_token, sep_token, pad_token: the tokens by name; each must be in the vocabulary, and pad_token must be there.

    Raises:
        InputError: the JSON is not a tokenizer, a token is not in it, or `max_tokens` leaves no room for text.
    """

    def __init__(self, json: str, max_tokens: int, cls_token: str, sep_token: str, pad_token: str) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(json)
        except Exception as error:  # the library raises a plain Exception
            raise InputError(
                f"not a tokenizer ({error})", field="tokenizer", wanted="the content of a tokenizer.json"
            ) from error
        ids: dict[str, int] = {}
        for field, token in (("cls_token", cls_token), ("sep_token", sep_token), ("pad_token", pad_token)):
            if not token and field != "pad_token":
                continue
            found = self._tokenizer.token_to_id(token)
            if found is None:
                raise InputError("not in the tokenizer's vocabulary", field=field, value=token)
            ids[field] = found
        special = self._tokenizer.num_special_tokens_to_add(False)
        if max_tokens <= special:
            problem = f"leaves no room for text beside the tokenizer's {special} special tokens"
            raise InputError(problem, field="data.texts.max_tokens", value=max_tokens, wanted=f"more than {special}")
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=max_tokens)
        self.pad_id = ids["pad_token"]

    @property
    def vocab_size(self) -> int:
        """The number of tokens, special ones included: the least number of rows of an embedding."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def count_cut(self, texts: list[str]) -> int:
        """How many texts are longer than `max_tokens`."""
        return sum(bool(encoding.overflowing) for encoding in self._encodings(texts))

    def encode(self, texts: list[str]) -> list[npt.NDArray[np.int32]]:
        """Ids [num_tokens] of each text, special tokens included, cut to `max_tokens`, not padded."""
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in self._encodings(texts)]

    def _encodings(self, texts: list[str]) -> list[Any]:
        # Half a surrogate pair, as a JSON escape can bring it in, cannot cross into the library.
        return self._tokenizer.encode_batch_fast([text.encode("utf-8", "replace").decode("utf-8") for text in texts])


@lru_cache(maxsize=8)
def tokenizer_from_json(json: str, max_tokens: int, cls_token: str, sep_token: str, pad_token: str) -> TextTokenizer:
    """A TextTokenizer, built once a process for the same content: building takes far longer than encoding a batch."""
    return TextTokenizer(json, max_tokens, cls_token, sep_token, pad_token)


SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_INSIDE = "##"  # marks a piece that continues a word


def build_tokenizer(texts: Iterable[str], vocab_size: int = 4000) -> str:
    """Train an uncased WordPiece tokenizer with BERT's normalisation and special tokens; return its JSON.

    The same texts give the same JSON. The library alone does not promise that: it numbers characters in the order of a
    randomly seeded hash table and breaks ties between merges by number. So each character has its number beforehand.
    """
    corpus = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    trained = _bert_like({})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *_alphabet(corpus, trained, most=vocab_size // 4)],
        limit_alphabet=0,  # no character but those above
        show_progress=False,
    )
    trained.train_from_iterator(corpus, trainer)
    # A second tokenizer, in which only the real special tokens are special.
    tokenizer = _bert_like(trained.get_vocab())
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return str(tokenizer.to_str())


def _bert_like(vocab: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", continuing_subword_prefix=_INSIDE))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_INSIDE)
    return tokenizer


def _alphabet(corpus: list[str], tokenizer: Tokenizer, most: int) -> list[str]:
    """The `most` frequent characters, sorted, followed by their forms inside words."""
    counts: Counter[str] = Counter()
    for text in corpus:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            counts.update(word)
    common = sorted(sorted(counts), key=lambda char: -counts[char])[:most]
    return [*sorted(common), *(_INSIDE + char for char in sorted(common))]
