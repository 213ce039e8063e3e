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
PRIOR = ["uacr.prior=estimated"]
ALIGN = ["uacr.unselected=align"]

BASELINES: dict[str, list[str]] = {
    "sources combined": SOURCES,
    "text only": [*SOURCES, "network.modalities=text"],
    "pictures only": [*SOURCES, "network.modalities=pictures"],
    "first source": SOURCES,
    "second source": SOURCES,
    "prior correction": [*SOURCES[:-1], "uacr.warmup=3", "uacr.labels=soft", "uacr.balance=true", *PRIOR],
    "DANN": [*SOURCES, "objective.cdafa=1", "discriminators={pairs: merged, seen: features, hidden: 64, warmup: 100}"],
    "CDAN": [*SOURCES, "objective.cdafa=1", "discriminators={pairs: merged, seen: joint, hidden: 64, warmup: 100}"],
    "MDAN": [
        *SOURCES,
        "objective.cdafa=1",
        "objective.source_weights=hardest",
        "discriminators={pairs: target, seen: features, hidden: 64, warmup: 100}",
    ],
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
# Each option on top of `published`.
OPTIONS: dict[str, list[str]] = {
    "+ prior estimated": PRIOR,
    "+ prior estimated, balanced": [*PRIOR, "uacr.balance=true"],
    "+ unselected aligned": ALIGN,
    "+ unselected aligned, prior estimated": [*ALIGN, *PRIOR],
    "+ stronger MCC": ["objective.mcc=0.3"],
    "+ stronger MCC, unselected aligned": ["objective.mcc=0.3", *ALIGN],
    "+ neighbours (fused)": ["uacr.refine=fused"],
    "+ neighbours (text and pictures)": ["uacr.refine=modalities"],
    "+ neighbours (the other modality)": ["uacr.refine=cross"],
    "+ centroids": ["uacr.refine=centroids"],
    "+ soft labels": ["uacr.labels=soft"],
    "+ EMA teacher": ["uacr.teacher=ema"],
    "+ threshold 0.8": ["uacr.threshold=0.8"],
    "+ score: probability": ["uacr.score=prob"],
    "+ score: uncertainty": ["uacr.score=uncertainty"],
    "+ slower UACR": ["uacr.warmup=3", "uacr.update=0.1"],
    "+ CMCFA symmetric": ["objective.cmcfa_symmetric=true"],
    "+ CMCFA symmetric, T 0.1": [
        "objective.cmcfa_symmetric=true",
        "objective.cmcfa_temperature=0.1",
        "objective.cmcfa=0.1",
    ],
    "+ CMCFA weaker": ["objective.cmcfa=0.05"],
    "+ discriminators of 64 units": ["discriminators.hidden=64"],
    "+ sources by proximity": ["objective.source_weights=proximity"],
    "+ gate": ["network.gate=true"],
}
MAIN: dict[str, list[str]] = {"published": [], "recommended": []}
# `recommended` is `published` with a threshold and a slower start, without SAM.
REMOVED: dict[str, list[str]] = {
    "recommended + stronger MCC": ["objective.mcc=1"],
    "recommended + SAM": ["sam.rho=0.05"],
    "recommended + soft labels": ["uacr.labels=soft"],
    "recommended + centroids": ["uacr.refine=centroids"],
    "recommended + unselected aligned": ALIGN,
    "recommended + prior estimated": PRIOR,
    "recommended + EMA teacher": ["uacr.teacher=ema"],
    "recommended + neighbours": ["uacr.refine=modalities"],
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
    "threshold, the slower start, and labels smoothed over neighbours in text and pictures; over `recommended` nothing did on "
    "both, neighbours included. A stronger MCC, an EMA teacher, source weights and unselected samples in alignment stay "
    "within the noise there. Over `published`, unselected samples in alignment and the gate cost two to three points on the "
    "postcards, soft labels thirteen. Symmetric CMCFA, a weaker one and larger discriminators changed nothing. Neighbours of "
    "the other modality alone, the heads' agreement alone as score, and an estimated prior were clearly worse.",
    "",
    "The estimated prior: one that is estimated again after every epoch sees what the selection by the last one taught, and "
    "classes vanish. It is estimated from calibrated predictions only until pseudo labels take part. After a single epoch "
    "(`published`) the network is too weak for any estimate; with a slower start it holds on the icons and still costs nine "
    'points on the postcards ("recommended + prior estimated"): where the classes\' shares are not known, uniform is safer.',
]
