"""Captions of the generated postcards: which words each domain has for a feeling, and how it builds sentences.

Every domain reads the SHARED words the same way and has words of its own that no other domain uses. The target leans
on its own, so a reader trained on the sources meets captions it cannot understand next to captions it can: that gap is
what adaptation has to bridge. A few AMBIGUOUS words change their meaning from domain to domain. Topics, times and
sentence patterns differ by domain and say nothing about the feeling.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

CLASSES: Final = ("negative", "neutral", "positive")

SHARED: Final = {
    "negative": ("awful", "terrible", "horrible", "dreadful", "miserable", "disappointing", "sad", "poor"),
    "neutral": ("ordinary", "average", "usual", "plain", "standard", "normal", "unremarkable", "regular"),
    "positive": ("lovely", "wonderful", "delightful", "great", "beautiful", "fantastic", "perfect", "happy"),
}

# the feeling that a word carries in (seaside, city, mountain); every class has at least one word in every domain
AMBIGUOUS: Final = {
    "wild": ("negative", "positive", "positive"),
    "quiet": ("positive", "negative", "neutral"),
    "steep": ("neutral", "negative", "positive"),
    "warm": ("positive", "neutral", "negative"),
    "busy": ("negative", "positive", "neutral"),
    "slow": ("neutral", "neutral", "negative"),
}

AMBIGUOUS_SHARE: Final = 0.08  # of the own words of a caption, how many are replaced by an ambiguous one
STRAY_SHARE: Final = 0.02  # of all sentiment words, how many express a feeling other than the label's
NEGATED_SHARE: Final = 0.05  # of the sentences with a feeling, how many express it by denying the opposite


@dataclass(frozen=True)
class Voice:
    """How one domain writes; the shares of caption kinds are in the order of KINDS."""

    own: dict[str, tuple[str, ...]]
    topics: tuple[str, ...]
    times: tuple[str, ...]
    telling: tuple[str, ...]  # sentence patterns with a place for a sentiment word
    plain: tuple[str, ...]  # sentence patterns without
    kind_shares: tuple[float, float, float, float]
    sentence_shares: tuple[float, float, float]  # of captions with one, two, three sentences


KINDS: Final = ("shared", "own", "both", "none")

VOICES: Final = {
    "seaside": Voice(
        own={
            "negative": ("sunburnt", "sticky", "polluted", "seasick", "soggy", "fishy", "stinging", "muddy"),
            "neutral": ("tidal", "coastal", "mild", "sandy", "seasonal", "nautical", "salty", "offshore"),
            "positive": ("sunny", "balmy", "sparkling", "refreshing", "breezy", "golden", "turquoise", "carefree"),
        },
        topics=("beach", "harbour", "pier", "lighthouse", "ferry", "bay", "promenade", "dunes", "lagoon", "kiosk"),
        times=("today", "this morning", "at low tide", "all week", "after lunch"),
        telling=(
            "The {topic} was {word} {time}.",
            "Such {word} hours at the {topic}!",
            "{time} we found the {topic} {word}.",
            "{word} waves by the {topic}.",
        ),
        plain=("We sat near the {topic} {time}.", "Greetings from the {topic}.", "A view of the {topic} {time}."),
        kind_shares=(0.35, 0.35, 0.20, 0.10),
        sentence_shares=(0.45, 0.40, 0.15),
    ),
    "city": Voice(
        own={
            "negative": ("noisy", "crowded", "grimy", "jammed", "overpriced", "smoggy", "stressful", "rude"),
            "neutral": ("central", "municipal", "paved", "commuting", "numbered", "scheduled", "urban", "weekday"),
            "positive": ("buzzing", "stylish", "vibrant", "dazzling", "elegant", "trendy", "lively", "glamorous"),
        },
        topics=("museum", "station", "market", "avenue", "tram", "cafe", "theatre", "square", "bridge", "gallery"),
        times=("tonight", "on Friday", "during rush hour", "before the show", "downtown"),
        telling=(
            "Honestly, this {topic} feels {word} {time}.",
            "Our {topic} turned out {word}, just saying.",
            "Everybody calls that {topic} {word}.",
            "{word} {topic}, {word_again} crowd, typical {time}!",
        ),
        plain=(
            "Took the metro to that {topic} {time}.",
            "Here is our {topic}, corner of Fifth.",
            "Meeting friends by the {topic} {time}.",
        ),
        kind_shares=(0.35, 0.35, 0.20, 0.10),
        sentence_shares=(0.30, 0.45, 0.25),
    ),
    "mountain": Voice(
        own={
            "negative": ("freezing", "treacherous", "blistered", "stranded", "icy", "bleak", "exhausting", "foggy"),
            "neutral": ("alpine", "rocky", "gradual", "signposted", "wooded", "elevated", "northern", "roped"),
            "positive": ("majestic", "crisp", "breathtaking", "cosy", "pristine", "soaring", "starlit", "uplifting"),
        },
        topics=("summit", "trail", "glacier", "hut", "valley", "ridge", "campsite", "waterfall", "gorge", "plateau"),
        times=("before dawn", "past midnight", "above the clouds", "on day three", "with heavy packs"),
        telling=(
            "Hiking up {time}, one meets some {word} {topic} among old pines.",
            "Dear all, how {word} is a {topic} seen {time}!",
            "My boots reached another {topic}, truly {word}.",
            "Nothing else but {word} miles along every {topic} {time}.",
        ),
        plain=(
            "Pitched our tents beside one {topic} {time}.",
            "Seven hours walking, then another {topic}.",
            "Map, rope and lantern packed {time}, off toward some {topic}.",
        ),
        kind_shares=(0.20, 0.45, 0.25, 0.10),
        sentence_shares=(0.20, 0.45, 0.35),
    ),
}

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
