"""The class shares of a target, estimated from the features of frozen encoders where the sources agree on them.

Probes of the sources predict the target, whose features are standardised by its own mean and deviation. Where its class shares
differ from the sources', so do these statistics, and that hides a part of the difference. So each round weighs the target's rows
as if their classes had the sources' shares, standardises by the weighted statistics, predicts anew, and takes the shares of the
largest likelihood (Saerens, Latinne and Decaestecker, Neural Computation 14, 2002).

Pictures and texts that differ from domain to domain look like other class shares, too. So each source alone is asked: only
where all say nearly the same, and that is not equal shares, the estimate counts, and only if they know the classes of each
other: probes that know nothing may agree by chance.

Shapes: N rows, K features of a modality, C classes. float64, deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from trainers.m2can.floor.fit import LEAST_DEVIATION, Features, fit_probes, linear_logits, standardised

# The first two are sums of absolute differences of class shares, 0 to 2; chosen on benchmarks/choose_preset.py's data sets.
SAME = 0.5  # as far apart as two sources' estimates may be, on average
DIFFERENT = 0.3  # from equal shares, at least
KNOWING = 0.25  # mean recall of a source's probes on the others, from chance (0) to always right (1), at least
LEAST_SHARE = 0.1  # of a class, as a part of an equal share: none vanishes
_ROUNDS = 5
_STEPS = 200  # of expectation-maximisation
_LEAST = 1e-3  # share that a row's weight divides by


def estimate_shares(sources: Sequence[tuple[Features, Tensor]], target: Features, num_classes: int) -> Tensor | None:
    """The target's class shares, [C]; None: the sources differ on them, say that they are equal, or know too little.

    Args:
        sources: features and labels [N] of each source. Of a single one there is no second opinion: None.
        target: features of the target's rows.
    """
    if len(sources) < 2:
        return None
    taught = [({name: standardised(x) for name, x in features.items()}, labels) for features, labels in sources]
    alone, recalls = [], []
    for source in taught:
        probes = fit_probes([source], num_classes)
        alone.append(_by_probes(*probes, source[1], target))
        recalls += [_mean_recall(linear_logits(x, *probes), labels) for x, labels in taught if x is not source[0]]
    apart = torch.stack([(a - b).abs().sum() for a, b in combinations(alone, 2)]).mean()
    differs = (torch.stack(alone).mean(0) - 1 / num_classes).abs().sum()
    above_chance = (torch.stack(recalls).mean() - 1 / num_classes) / (1 - 1 / num_classes)
    if apart > SAME or differs < DIFFERENT or above_chance < KNOWING:
        return None
    shares_C = _by_probes(*fit_probes(taught, num_classes), torch.cat([labels for _, labels in taught]), target)
    shares_C = shares_C.clamp_min(LEAST_SHARE / num_classes)
    return shares_C / shares_C.sum()


def _by_probes(weight: Mapping[str, Tensor], bias_C: Tensor, labels_N: Tensor, target: Features) -> Tensor:
    """The target's class shares by probes that were fitted to these labels."""
    counts_C = labels_N.bincount(minlength=len(bias_C)).clamp_min(1).double()
    before_C = counts_C / counts_C.sum()
    logits_NC = linear_logits({name: standardised(x) for name, x in target.items()}, weight, bias_C)
    shares_C = most_likely_shares(logits_NC.softmax(1), before_C)
    for _ in range(_ROUNDS):
        posterior_NC = (logits_NC.log_softmax(1) + (shares_C / before_C).log()).softmax(1)
        weight_N = posterior_NC @ (before_C / shares_C.clamp_min(_LEAST))
        again = {name: _standardised_by(x.double(), weight_N) for name, x in target.items()}
        logits_NC = linear_logits(again, weight, bias_C)
        shares_C = most_likely_shares(logits_NC.softmax(1), before_C)
    return shares_C


def _mean_recall(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Over the classes that have rows."""
    right_N = (logits_NC.argmax(1) == labels_N).double()
    return torch.stack([right_N[labels_N == c].mean() for c in labels_N.unique()]).mean()


def most_likely_shares(probs_NC: Tensor, before_C: Tensor) -> Tensor:
    """The class shares of rows by expectation-maximisation on a classifier's predictions, [C].

    Args:
        probs_NC: calibrated probabilities, float64. before_C: class shares of what it was trained on, each above 0.
    """
    shares_C = before_C
    for _ in range(_STEPS):
        posterior_NC = probs_NC * (shares_C / before_C)
        after_C = (posterior_NC / posterior_NC.sum(1, keepdim=True)).mean(0).clamp_min(1e-12)
        moved, shares_C = (after_C - shares_C).abs().max(), after_C
        if moved < 1e-8:
            break
    return shares_C / shares_C.sum()


def _standardised_by(x_NK: Tensor, weight_N: Tensor) -> Tensor:
    """Less the weighted mean, over the weighted deviation."""
    share_N1 = (weight_N / weight_N.sum())[:, None]
    mean_K = (share_N1 * x_NK).sum(0)
    variance_K = (share_N1 * (x_NK - mean_K).square()).sum(0)
    return (x_NK - mean_K) / variance_K.sqrt().clamp_min(LEAST_DEVIATION)
