"""The target's class shares, estimated with calibration and shrunk to uniform.  python -m experiments.class_shares --cache FOLDER

Probabilities of a network that was trained on the sources alone are calibrated on the sources' validation records with one
temperature and a bias for each class (BCTS); expectation-maximisation gives the shares; the spread of bootstrap estimates says
how far they shrink to uniform, and, as a second way, the smallest singular value of the confusion matrix. Rows: L1 error to the
true shares.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize

from benchmarks.cached import CachedFeatures
from experiments.prior import estimate_prior
from trainers.validators import choose_candidate

DRAWS = 30  # of the bootstrap
_LEAST = 1e-12


def calibrated(log_probs_NC: np.ndarray, scale_bias: np.ndarray) -> np.ndarray:
    """softmax(log p · scale + bias), [N, C]. Args: scale_bias: log of the scale, then C biases."""
    logits_NC = log_probs_NC * np.exp(scale_bias[0]) + scale_bias[1:]
    powers_NC = np.exp(logits_NC - logits_NC.max(1, keepdims=True))
    found: np.ndarray = powers_NC / powers_NC.sum(1, keepdims=True)
    return found


def bias_corrected_temperature(log_probs_MC: np.ndarray, labels_M: np.ndarray) -> np.ndarray:
    """Log of the scale, and a bias for each class, of the smallest cross-entropy.

    Source: Alexandari, Kundaje and Shrikumar, "Maximum Likelihood with Bias-Corrected Calibration is Hard-To-Beat at Label
    Shift Adaptation", ICML 2020, arXiv:1901.06852.
    """
    rows = np.arange(len(labels_M))

    def loss(scale_bias: np.ndarray) -> float:
        likelihood_M = calibrated(log_probs_MC, scale_bias)[rows, labels_M]
        return float(-np.log(likelihood_M + _LEAST).mean() + 1e-3 * np.square(scale_bias[1:]).sum())

    found: np.ndarray = minimize(loss, np.zeros(log_probs_MC.shape[1] + 1)).x
    return found


def estimates(probs_MC: np.ndarray, labels_M: np.ndarray, probs_NC: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Class shares by uniform, EM, EM shrunk by the bootstrap's spread, and that by the confusion matrix, too; [C] each.

    Args:
        probs_MC, labels_M: of the sources' validation records. probs_NC: of the target.
    """
    classes = probs_MC.shape[1]
    of_sources, of_target = (np.log(probs.astype(float) + _LEAST) for probs in (probs_MC, probs_NC))
    draw = np.random.default_rng(seed)

    def shares(sources: np.ndarray, target: np.ndarray) -> np.ndarray:
        settings = bias_corrected_temperature(of_sources[sources], labels_M[sources])
        before = np.bincount(labels_M[sources], minlength=classes).clip(1) / len(sources)
        return estimate_prior(calibrated(of_target[target], settings), before / before.sum())

    whole = shares(np.arange(len(labels_M)), np.arange(len(probs_NC)))
    draws = [
        shares(draw.integers(len(labels_M), size=len(labels_M)), draw.integers(len(probs_NC), size=len(probs_NC)))
        for _ in range(DRAWS)
    ]
    uniform = np.full(classes, 1 / classes)
    variance = np.square(np.array(draws) - np.mean(draws, 0)).sum(1).mean()
    trust = max(0.0, 1 - variance / max(np.square(whole - uniform).sum(), _LEAST))
    right_CC = [np.bincount(probs_MC[labels_M == c].argmax(1), minlength=classes) for c in range(classes)]
    confusion_CC = np.array(right_CC) / np.maximum(np.sum(right_CC, 1, keepdims=True), 1)
    conditioned = trust * min(1.0, float(np.linalg.svd(confusion_CC, compute_uv=False)[-1]))
    found = {"uniform": uniform, "EM": whole}
    found["EM, shrunk by bootstrap"] = trust * whole + (1 - trust) * uniform
    found["EM, shrunk by bootstrap and confusion"] = conditioned * whole + (1 - conditioned) * uniform
    return found


def accuracy_with_estimate(features: CachedFeatures, share: float) -> float:
    """Of the epoch that is chosen without target labels, on all training records of the target, 0 to 1.

    Args:
        share: of the estimate in the shares that quotas follow; the rest is uniform. 0: the product as it is.
    """
    from benchmarks.source_free import loop_of

    loop = loop_of(features, "recommended", [])
    target = features.corpus.train[-1]
    labels, classes = features.corpus.labels[target.rows], len(features.corpus.classes)
    evidence, accuracy = [], []
    while not loop.is_over:
        _, scored = loop.run_epoch()
        seen, pseudo = scored.validator_inputs, loop.pseudo_labels
        if share and pseudo.selects_after(loop.epoch) and pseudo.uacr.prior == "uniform":
            found = estimates(seen.source_probs_MC, seen.source_labels_M, seen.target_probs_NC)["EM"]
            prior = (share * found + (1 - share) / classes).tolist()
            pseudo.uacr = pseudo.uacr.model_copy(update={"prior": prior})
            pseudo.update(loop.epoch, scored.of(target), labels)
        evidence.append(seen)
        accuracy.append(float((scored.of(target)["label"] == labels).mean()))
    selection = loop.recipe.selection
    return accuracy[choose_candidate(selection.validator, evidence, selection.gate)]


def main() -> None:
    from benchmarks.expected import DATA, features_of, with_target
    from benchmarks.source_free import trained
    from benchmarks.variants import SOURCES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="packages, data and features; outside the project")
    parser.add_argument("--shifts", nargs="+", type=float, default=[0.0, 0.5])
    parser.add_argument("--train", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.train:
        for shift, share in product(arguments.shifts, (0.0, 0.5)):
            means = []
            for data in DATA:
                cases = (with_target(features_of(data, arguments.cache), target, shift, seed=0) for target in range(3))
                means.append(100 * float(np.mean([accuracy_with_estimate(case, share) for case in cases])))
            shown = " | ".join(f"{cell:.1f}" for cell in [*means, float(np.mean(means))])
            print(f"| {'resampled' if shift else 'own'} | {'half way' if share else 'uniform'} | {shown} |", flush=True)
        return
    errors: dict[tuple[float, str], dict[str, list[float]]] = {}
    for data, target, shift in product(DATA, range(3), arguments.shifts):
        features = with_target(features_of(data, arguments.cache), target, shift, seed=0)
        seen = trained(features, "published", SOURCES)[2]
        labels = features.corpus.labels[features.corpus.train[-1].rows]
        true = np.bincount(labels, minlength=len(features.corpus.classes)) / len(labels)
        for name, found in estimates(seen.source_probs_MC, seen.source_labels_M, seen.target_probs_NC).items():
            of_data = errors.setdefault((shift, name), {}).setdefault(data, [])
            of_data.append(float(np.abs(found - true).sum()))
    for (shift, name), by_data in errors.items():
        cells = " | ".join(f"{np.mean(values):.2f}" for values in by_data.values())
        mean = np.mean([np.mean(values) for values in by_data.values()])
        print(f"| {'resampled' if shift else 'own'} | {name} | {cells} | {mean:.2f} |")


if __name__ == "__main__":
    main()
