"""The tokenizer of a run: the text encoder's own, or one built from the training texts for `tiny`."""

from __future__ import annotations

from datasets_manifest.errors import InputError, first_line
from datasets_manifest.records.corpus import Corpus
from datasets_manifest.records.sharded_table import some_rows
from datasets_manifest.stream.encode import Vocabulary, count_cut
from datasets_manifest.stream.text import build_tokenizer, clean, tokenizer_from_json
from trainers.compute.device_batches import make_encoding
from trainers.recipe import Recipe

MOST_COUNTED = 20_000  # records
MOST_LEARNED = 2**22  # from which the words of `tiny` are taken: the texts of so many take some GB


def make_vocabulary(recipe: Recipe, corpus: Corpus) -> Vocabulary:
    """Raises InputError: the encoder has no tokenizer that can be read."""
    if recipe.encoders.text.tiny is None:
        return encoder_vocabulary(recipe)
    return word_vocabulary(recipe, _training_texts(recipe, corpus))


def word_vocabulary(recipe: Recipe, texts: list[str]) -> Vocabulary:
    """Of the words of some texts."""
    specials = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return _vocabulary(recipe, build_tokenizer(texts), specials)


def encoder_vocabulary(recipe: Recipe) -> Vocabulary:
    """The text encoder's own. Raises InputError: it has no tokenizer that can be read."""
    from transformers import AutoTokenizer

    name = recipe.encoders.text.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
        json = tokenizer.backend_tokenizer.to_str()
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"no fast tokenizer could be read ({first_line(error)})",
            field="encoders.text.name",
            value=name,
            wanted="`tiny`, a local folder or a hub name of a transformers encoder",
        ) from None
    # CLIP's and SigLIP's tokenizers have nothing to put between two sentences: their end token would end the text.
    specials = {key: getattr(tokenizer, key) or "" for key in ("cls_token", "sep_token", "pad_token")}
    if not specials["pad_token"]:
        wanted = "a tokenizer that names its pad_token"
        raise InputError("its tokenizer has no pad_token", field="encoders.text.name", value=name, wanted=wanted)
    # What transformers makes of a folder without the tokenizer's files knows the special tokens alone.
    if tokenizer.backend_tokenizer.get_vocab_size() <= len(set(tokenizer.all_special_tokens)):
        raise InputError(
            "its tokenizer has no words: its files are missing",
            field="encoders.text.name",
            value=name,
            wanted="a folder or hub name with the tokenizer, as tokenizer.json",
        )
    return _vocabulary(recipe, json, specials)


def count_cut_texts(recipe: Recipe, corpus: Corpus, vocabulary: Vocabulary) -> tuple[int, int]:
    """How many training texts have more than `max_tokens` tokens, of how many looked at: at most MOST_COUNTED, evenly spread."""
    samples = [texts for texts in _texts_of(corpus, MOST_COUNTED) if texts]
    return count_cut(samples, make_encoding(recipe, vocabulary)), len(samples)


def _vocabulary(recipe: Recipe, json: str, specials: dict[str, str]) -> Vocabulary:
    made = tokenizer_from_json(json, recipe.data.texts.most_tokens, **specials)
    return Vocabulary(json=json, pad_id=made.pad_id, size=made.vocab_size, **specials)


def _training_texts(recipe: Recipe, corpus: Corpus) -> list[str]:
    """Of the sources and of the target: its texts are there, only its labels are not. Of at most MOST_LEARNED records."""
    cleaning = recipe.data.texts.cleaning
    return [clean(sentence, cleaning) for sentences in _texts_of(corpus, MOST_LEARNED) for sentence in sentences]


def _texts_of(corpus: Corpus, most: int) -> list[list[str]]:
    """Of the training records, of each domain in proportion, evenly spread."""
    rows = sum(map(len, corpus.train))
    found: list[list[str]] = []
    for part in corpus.train:
        texts = corpus.table.select(["texts"]).slice(part.start, len(part))
        every = max(1, -(-rows // most))
        found += texts.take(some_rows(texts, -(-len(part) // every)))["texts"].to_pylist()
    return found
