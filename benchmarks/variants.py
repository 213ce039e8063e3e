"""What is compared: every variant is a list of recipe overrides, as in a sweep."""

from __future__ import annotations

# The same for all: a network above frozen encoders needs larger rates than the published encoders.
COMMON = [
    "train.epochs=10",
    "train.batch_size=32",
    "data.samples_per_epoch=480",
    *(f"optimizer.lr.{part}=4.0e-3" for part in ("projections", "fusion", "heads")),
    *(f"optimizer.lr.discriminators_{kind}=2.0e-3" for kind in ("source", "target")),
    "checkpoint.keep=1",
]
TERMS = ("cmcfa", "cdcfa", "cdafa", "mcc")
NO_TERMS = [f"objective.{term}=0" for term in TERMS]
NO_SAM = ["sam.rho=0"]
SOURCES = [*NO_TERMS, *NO_SAM, "uacr.enabled=false"]

BASELINES: dict[str, list[str]] = {
    "sources combined": SOURCES,
    "text only": [*SOURCES, "network.modalities=text"],
    "pictures only": [*SOURCES, "network.modalities=pictures"],
    "first source": SOURCES,
    "second source": SOURCES,
    "DANN": [*SOURCES, "objective.cdafa=1", "objective.discriminators=dann"],
    "CDAN": [*SOURCES, "objective.cdafa=1", "objective.discriminators=cdan"],
    "MDAN": [*SOURCES, "objective.cdafa=1", "objective.discriminators=mdan"],
    "MCC": [*SOURCES, "objective.mcc=1"],
    "M3SDA": [*SOURCES, "objective.moments=0.1"],
    "xMUDA": [*SOURCES, "objective.imitation=0.5"],
    "target supervised (oracle)": [*SOURCES, "train.target_labels=oracle"],
}
OFF: dict[str, list[str]] = {
    **{f"published − {term.upper()}": [f"objective.{term}=0"] for term in TERMS},
    "published − SAM": NO_SAM,
    "published − UACR": ["uacr.enabled=false"],
}
# A term alone needs the target from the first epoch on; with its published weight.
ALONE: dict[str, list[str]] = {
    **{
        f"{term.upper()} alone": [
            *(f"objective.{other}=0" for other in TERMS if other != term),
            *NO_SAM,
            "uacr.enabled=false",
        ]
        for term in TERMS
    },
    "SAM alone": [*NO_TERMS, "uacr.enabled=false"],
    "UACR alone": [*NO_TERMS, *NO_SAM],
}
# Each option on top of `published`. Options that left the product have their rows in experiments/README.md.
OPTIONS: dict[str, list[str]] = {
    "+ stronger MCC": ["objective.mcc=0.3"],
    "+ threshold 0.8": ["uacr.threshold=0.8"],
    "+ slower UACR": ["uacr.warmup=3", "uacr.update=0.1"],
    "+ CMCFA weaker": ["objective.cmcfa=0.05"],
}
MAIN: dict[str, list[str]] = {"published": [], "recommended": []}
# `recommended` is `published` with a threshold and a slower start, without SAM.
REMOVED: dict[str, list[str]] = {
    "recommended + stronger MCC": ["objective.mcc=1"],
    "recommended + SAM": ["sam.rho=0.05"],
}
VARIANTS = {**BASELINES, **MAIN, **OFF, **ALONE, **OPTIONS, **REMOVED}
# All others stand on `published`.
PRESET_OF = dict.fromkeys(["recommended", *REMOVED], "recommended")
NOTES: list[str] = [
    "`recommended` is `published` with a threshold on the score and a slower start of the pseudo labels, and without SAM. Over "
    'five seeds the threshold alone and the slower start alone are above `published` on both data sets (rows "+ threshold '
    '0.8" and "+ slower UACR"), and so are both together. SAM doubles the cost of a step; over `recommended` it is a point '
    'up on the postcards and half a point down on the icons ("recommended + SAM"), which is noise. These numbers chose the '
    "preset, so the gain on other data may be smaller; SAM may be worth more where whole encoders are trained: `sam.rho=0.05`.",
    "",
    "All rows are of five seeds; differences of two points are noise. What went up on both sets over `published`: the "
    "threshold and the slower start. A stronger MCC and a weaker CMCFA stay within the noise. What else was tried, with its "
    "rows: `experiments/README.md`.",
]
