"""Captions of the generated postcards: which words each domain has for a feeling, and how it builds sentences.

Every domain reads the SHARED words the same way and has words of its own that no other domain uses. The target leans
on its own, so a reader trained on the sources meets captions it cannot understand next to captions it can: that gap is
what adaptation has to bridge. A few AMBIGUOUS words change their meaning from domain to domain. Topics, times and
sentence patterns differ by domain and say nothing about the feeling.
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import numpy as np
import yaml
from pydantic import TypeAdapter

CLASSES: Final = ("negative", "neutral", "positive")

AMBIGUOUS_SHARE: Final = 0.08  # of the own words of a caption, how many are replaced by an ambiguous one
STRAY_SHARE: Final = 0.02  # of all sentiment words, how many express a feeling other than the label's
NEGATED_SHARE: Final = 0.05  # of the sentences with a feeling, how many express it by denying the opposite


@dataclass(frozen=True)
class Voice:
    """How one domain writes; the shares of caption kinds are in the order of KINDS."""

    own: dict[str, tuple[str, ...]]
    topics: tuple[str, ...]
    times: tuple[str, ...]
    telling: tuple[str, ...]  # sentence patterns with a sentiment word
    plain: tuple[str, ...]  # sentence patterns without
    kind_shares: tuple[float, float, float, float]
    sentence_shares: tuple[float, float, float]  # of captions with one, two, three sentences


@dataclass(frozen=True)
class _Content:
    """words.yaml. shared: words by class. ambiguous: each word's class in each of DOMAINS."""

    shared: dict[str, tuple[str, ...]]
    ambiguous: dict[str, tuple[str, str, str]]
    voices: dict[str, Voice]


KINDS: Final = ("shared", "own", "both", "none")

_CONTENT: Final = TypeAdapter(_Content).validate_python(
    yaml.safe_load(files(__package__).joinpath("words.yaml").read_text(encoding="utf-8"))
)
SHARED, AMBIGUOUS, VOICES = _CONTENT.shared, _CONTENT.ambiguous, _CONTENT.voices
DOMAINS: Final = tuple(VOICES)
OPPOSITE: Final = {"negative": "positive", "positive": "negative"}


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """One of `options`, all equally likely."""
    return options[int(rng.integers(len(options)))]


def caption(rng: np.random.Generator, domain: str, label: str) -> list[str]:
    """One to three sentences of `domain` that express `label`, or nothing for the captions of kind "none"."""
    voice = VOICES[domain]
    kind = KINDS[int(rng.choice(len(KINDS), p=voice.kind_shares))]
    sentences = 1 + int(rng.choice(3, p=voice.sentence_shares))
    telling = 0 if kind == "none" else int(rng.integers(1, sentences + 1))
    lines = [_telling_sentence(rng, domain, label, kind) for _ in range(telling)]
    lines += [_fill(rng, voice, pick(rng, voice.plain)) for _ in range(sentences - telling)]
    return [lines[i] for i in rng.permutation(len(lines))]


def _telling_sentence(rng: np.random.Generator, domain: str, label: str, kind: str) -> str:
    voice = VOICES[domain]
    pattern = pick(rng, voice.telling)
    if kind == "both":
        shared, own = _word(rng, domain, label, "shared"), _word(rng, domain, label, "own")
        phrase = f"{shared} and {own}" if rng.random() < 0.5 else f"{own} and {shared}"
        return _fill(rng, voice, pattern, phrase, own)
    if rng.random() < NEGATED_SHARE:
        return _fill(rng, voice, pattern, _denial(rng, domain, label, kind), _word(rng, domain, label, kind))
    return _fill(rng, voice, pattern, _word(rng, domain, label, kind), _word(rng, domain, label, kind))


def _denial(rng: np.random.Generator, domain: str, label: str, kind: str) -> str:
    """The feeling said by denying others; four words for every class, so that length tells nothing."""
    if label in OPPOSITE:
        return f"not at all {_word(rng, domain, OPPOSITE[label], kind)}"
    return f"neither {_word(rng, domain, 'positive', kind)} nor {_word(rng, domain, 'negative', kind)}"


def _word(rng: np.random.Generator, domain: str, label: str, kind: str) -> str:
    """A sentiment word of kind "shared" or "own" that mostly, not always, agrees with `label`."""
    if rng.random() < STRAY_SHARE:
        label = pick(rng, tuple(name for name in CLASSES if name != label))
    if kind == "shared":
        return pick(rng, SHARED[label])
    if rng.random() < AMBIGUOUS_SHARE:
        column = DOMAINS.index(domain)
        return pick(rng, tuple(word for word, meaning in AMBIGUOUS.items() if meaning[column] == label))
    return pick(rng, VOICES[domain].own[label])


def _fill(rng: np.random.Generator, voice: Voice, pattern: str, word: str = "", word_again: str = "") -> str:
    line = pattern.format(topic=pick(rng, voice.topics), time=pick(rng, voice.times), word=word, word_again=word_again)
    return line[0].upper() + line[1:]
