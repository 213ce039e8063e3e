"""An estimate of the target's accuracy from predictions alone, without target labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainers.validators.inputs import ValidatorInputs

EXPECTED = "target/expected_accuracy"
_LOW, _HIGH = f"{EXPECTED}_low", f"{EXPECTED}_high"
SIGNALS = ("thresholded", "difference", "agreement")
# FACTOR and SPREAD are chosen by benchmarks/expected.py, which measures them.
FACTOR = 1.5  # multiplies the share of errors that the signals suggest, since none sees all of a shift
SPREAD = 1.1  # nine of ten estimates err by less than this part of that share
LEAST_WRONG = 0.02  # share of errors that is assumed at least, as among few records none may be seen
NORMAL = 1.645  # deviations of a normal distribution that hold nine of ten
VAGUE = 0.5  # a wider interval is shown without its middle
_TEMPERATURES = np.geomspace(0.05, 20, 121)


@dataclass(frozen=True)
class ExpectedAccuracy:
    """An estimate and the ends of its interval, all 0 to 1."""

    accuracy: float
    low: float
    high: float

    def metrics(self) -> dict[str, float]:
        """As an epoch's metrics."""
        return {EXPECTED: self.accuracy, _LOW: self.low, _HIGH: self.high}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float]) -> ExpectedAccuracy | None:
        """None for an epoch without it: of an older version, or of sources without labelled validation records."""
        return cls(metrics[EXPECTED], metrics[_LOW], metrics[_HIGH]) if EXPECTED in metrics else None

    def __str__(self) -> str:
        low, high = f"{100 * self.low:.0f}", f"{100 * self.high:.0f}"
        if self.high - self.low > VAGUE:
            return f"between {low} and {high} %"
        return f"about {100 * self.accuracy:.0f} % ({low}-{high})"


def temperature(probs_MC: np.ndarray, labels_M: np.ndarray) -> float:
    """T that minimises the cross-entropy of softmax(log p / T), to an eighth of a factor of two, 0.05 to 20.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599.
    """
    rows = np.arange(len(labels_M))
    losses = [-np.log(tempered(probs_MC, t)[rows, labels_M] + 1e-12).mean() for t in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])


def tempered(probs_NC: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T), float64."""
    logits_NC = np.log(probs_NC.astype(np.float64) + 1e-12) / temperature
    powers_NC = np.exp(logits_NC - logits_NC.max(1, keepdims=True))
    return powers_NC / powers_NC.sum(1, keepdims=True)


def thresholded_confidence(confidence_M: np.ndarray, right_M: np.ndarray, confidence_N: np.ndarray) -> float:
    """ATC: share of target rows above the confidence that a share of source rows equal to their accuracy exceeds, 0 to 1.

    Source: Garg et al., "Leveraging Unlabeled Data to Predict Out-of-Distribution Performance", ICLR 2022,
    arXiv:2201.04234.

    Args:
        confidence_M: of the sources' validation rows.
        right_M: whether each is predicted right.
        confidence_N: of the target's rows.
    """
    wrong = int(len(right_M) - right_M.sum())
    if wrong == len(right_M):
        return 0.0
    return float((confidence_N >= np.sort(confidence_M)[wrong]).mean())


def agreement(heads_2M: np.ndarray, fused_M: np.ndarray, labels_M: np.ndarray, agree_2N: np.ndarray) -> float:
    """The sources' accuracy, changed by how much more often the better modality's head agrees with the fused prediction, 0 to 1.

    That two predictors agree about as often as they are right: Jiang et al., "Assessing Generalization of SGD via
    Disagreement", ICLR 2022, arXiv:2106.13799, there of two networks.

    Args:
        heads_2M: classes of the sources' rows by the text head and by the picture head.
        fused_M: their predicted classes.
        agree_2N: whether each head agrees with the prediction for the target's rows.
    """
    better = int((heads_2M == labels_M).mean(1).argmax())
    change = agree_2N[better].mean() - (heads_2M[better] == fused_M).mean()
    return float(np.clip((fused_M == labels_M).mean() + change, 0, 1))


def signals(inputs: ValidatorInputs) -> dict[str, float]:
    """Estimates of the target's accuracy by SIGNALS, each 0 to 1. Probabilities are calibrated on the sources.

    thresholded: ATC on the largest probability. difference: the sources' accuracy less how much less sure the target's
    predictions are. agreement: of text head or picture head and fused prediction; not in checkpoints of older versions.
    """
    labels_M, fused_M = inputs.source_labels_M, inputs.source_probs_MC.argmax(1)
    right_M = fused_M == labels_M
    t = temperature(inputs.source_probs_MC, labels_M)
    sure_M, sure_N = (tempered(probs, t).max(1) for probs in (inputs.source_probs_MC, inputs.target_probs_NC))
    difference = float(np.clip(right_M.mean() + sure_N.mean() - sure_M.mean(), 0, 1))
    found = {"thresholded": thresholded_confidence(sure_M, right_M, sure_N), "difference": difference}
    if inputs.source_modalities_2M is not None and inputs.target_modalities_2N is not None:
        agree_2N = inputs.target_modalities_2N == inputs.target_probs_NC.argmax(1)
        found["agreement"] = agreement(inputs.source_modalities_2M, fused_M, labels_M, agree_2N)
    return found


def combined(estimates: Sequence[float], factor: float, on_sources: float) -> tuple[float, float]:
    """The target's accuracy by the signals, and the share of errors from which the interval follows.

    Neither is better than on the sources: training on the target makes its predictions sure, whether they are right or not.
    """
    wrong = 1 - float(np.mean(estimates))
    return min(max(1 - factor * wrong, 0.0), on_sources), max(wrong, 1 - on_sources)


def expected_accuracy(inputs: ValidatorInputs) -> ExpectedAccuracy | None:
    """The accuracy by all signals together, and an interval of measured errors. None without labelled source rows.

    The interval joins the error of the estimate on data sets whose labels are known and that of counting so few rows.
    """
    rows, sources = len(inputs.target_probs_NC), len(inputs.source_labels_M)
    if not rows or not sources:
        return None
    found = signals(inputs)
    on_sources = float((inputs.source_probs_MC.argmax(1) == inputs.source_labels_M).mean())
    estimate, wrong = combined(list(found.values()), FACTOR, on_sources)
    share = min(max(estimate, LEAST_WRONG), 1 - LEAST_WRONG)
    counted = NORMAL * math.sqrt(share * (1 - share) * (1 / rows + 1 / sources))
    half = math.hypot(SPREAD * max(wrong, LEAST_WRONG), counted)
    return ExpectedAccuracy(estimate, max(estimate - half, 0.0), min(estimate + half, 1.0))
