"""The floor: linear probes with strong decay on the features of frozen encoders. No encoder is trained; it takes seconds.

Every domain's features are standardised by that domain's own mean and deviation, so that a probe of the sources fits the
target. How much a modality counts is learned from source to source: probes of all sources but one predict that one. The
target's predictions are shifted until their mean is the class prior, or half as far where the shares are not known. One round
of self-training follows: a probe on both modalities, of the sources and of the target with its own sharpened predictions.

Shapes: N rows, K features of a modality, C classes. All is computed in float64, on the device of the features, and is
deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.m2can.network import FUSED

DECAY = 1.0  # of the mean cross-entropy's probe, on features of unit variance
SOURCE_WEIGHT = 0.3  # of a source row against a target row in self-training
LABELLED_WEIGHT = 3.0  # of a target row whose label is known against one without
TEMPERATURE = 0.5  # that sharpens the target's predictions
UNKNOWN_SHIFT = 0.5  # of the shift to equal shares where the target's shares are not known
FOLDS = 5  # in which a single source predicts itself
MOST_DECOMPOSED = 512  # of the target's rows, evenly spread, for the principal components
LEAST_DEVIATION = 1e-6

Features = Mapping[str, Tensor]  # by modality, [N, K]


@dataclass(frozen=True)
class Floor:
    """A linear classifier of the target's features.

    weight: by modality, [C, K] on standardised features. bias: [C]. mean, deviation: the target's, by modality, [K].
    components: by modality, [64, K], of the standardised features of all modalities together.
    """

    weight: dict[str, Tensor]
    bias: Tensor
    mean: dict[str, Tensor]
    deviation: dict[str, Tensor]
    components: dict[str, Tensor]

    def logits(self, features: Features) -> Tensor:
        """[N, C] of rows of the target."""
        return linear_logits(self.standardised(features), self.weight, self.bias)

    def projected(self, features: Features) -> Tensor:
        """The 64 leading principal components of rows, [N, 64]."""
        return linear_logits(self.standardised(features), self.components)

    def standardised(self, features: Features) -> dict[str, Tensor]:
        """By modality, [N, K]: less the mean, over the deviation."""
        return {name: (features[name].double() - self.mean[name]) / self.deviation[name] for name in self.weight}

    def for_domain(self, features: Features) -> Floor:
        """The same classifier for another domain, which these rows of it standardise."""
        mean, deviation = _all_statistics(features)
        return replace(self, mean=mean, deviation=deviation)


def fit_floor(
    sources: Sequence[tuple[Features, Tensor]],
    target: Features,
    num_classes: int,
    *,
    prior: Tensor | None = None,
    self_training: bool = True,
    labelled: tuple[Tensor, Tensor] | None = None,
) -> Floor:
    """The floor of labelled sources and an unlabelled target.

    Args:
        sources: features and labels [N] of each source.
        target: features of the target's training rows.
        prior: [C], the classes' shares in the target; None: not known.
        self_training: whether the round of self-training follows.
        labelled: places among the target's rows and labels of those whose label is known, [n] each.
    """
    shares = torch.full((num_classes,), 1 / num_classes) if prior is None else prior
    strength = UNKNOWN_SHIFT if prior is None else 1.0
    log_prior = (shares.double() / shares.sum()).log().to(sources[0][1].device)
    mean, deviation = _all_statistics(target)
    of_target = {name: (x.double() - mean[name]) / deviation[name] for name, x in target.items()}
    taught = [({name: standardised(x) for name, x in features.items()}, labels) for features, labels in sources]
    known = None
    if labelled is not None and len(labelled[0]):
        known = {name: x[labelled[0]] for name, x in of_target.items()}, labelled[1]
    weight, bias = fit_probes(taught, num_classes, known)
    logits = linear_logits(of_target, weight, bias)
    shift = strength * prior_shift(logits, log_prior)
    bias = bias + shift
    if self_training:
        soft = ((logits + shift) / TEMPERATURE).softmax(1)
        importance = torch.ones_like(soft[:, 0])
        if labelled is not None:
            soft[labelled[0]] = F.one_hot(labelled[1], num_classes).double()
            importance[labelled[0]] = LABELLED_WEIGHT
        weight, bias = _self_trained(taught, of_target, soft, importance, log_prior, strength)
    return Floor(weight, bias, mean, deviation, principal_components(of_target))


def fit_probes(
    sources: Sequence[tuple[Features, Tensor]], num_classes: int, known: tuple[Features, Tensor] | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Weight by modality [C, K] and bias [C] of the probes of standardised sources, summed as much as each modality counts.

    Args:
        known: standardised features and labels [n] of target rows.
    """
    scales, bias = _modality_scales(sources, num_classes)
    seen = [*sources, *([known] if known else [])]
    y = F.one_hot(torch.cat([labels for _, labels in seen]), num_classes).double()
    importance = torch.ones_like(y[:, 0])
    importance[sum(len(labels) for _, labels in sources) :] = LABELLED_WEIGHT
    weight = {}
    for name, scale in scales.items():
        probe, probe_bias = fit_probe(torch.cat([features[name] for features, _ in seen]), y, importance)
        weight[name] = scale * probe
        bias = bias + scale * probe_bias
    return weight, bias


def fit_probe(x_NK: Tensor, y_NC: Tensor, weight_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weight [C, K] and bias [C] that minimise the (weighted) mean cross-entropy against soft labels, plus
    DECAY / 2 · ‖weight‖²."""
    share_N = x_NK.new_full((len(x_NK),), 1 / len(x_NK)) if weight_N is None else weight_N / weight_N.sum()
    weight_CK = x_NK.new_zeros(y_NC.shape[1], x_NK.shape[1], requires_grad=True)
    bias_C = x_NK.new_zeros(y_NC.shape[1], requires_grad=True)

    def loss() -> Tensor:
        entropy_N = F.cross_entropy(x_NK @ weight_CK.T + bias_C, y_NC, reduction="none")
        return (share_N * entropy_N).sum() + 0.5 * DECAY * weight_CK.square().sum()

    _minimise(loss, [weight_CK, bias_C])
    return weight_CK.detach(), bias_C.detach()


def prior_shift(logits_NC: Tensor, log_prior_C: Tensor) -> Tensor:
    """The shift [C] of the logits that makes the mean of their softmax the prior: Sinkhorn's scaling of the classes."""
    shift_C = torch.zeros_like(log_prior_C).requires_grad_()

    def loss() -> Tensor:  # its gradient is the mean prediction less the prior
        return (logits_NC + shift_C).logsumexp(1).mean() - (log_prior_C.exp() * shift_C).sum()

    _minimise(loss, [shift_C])
    return shift_C.detach()


def _modality_scales(sources: Sequence[tuple[Features, Tensor]], num_classes: int) -> tuple[dict[str, float], Tensor]:
    """The scale ≥ 0 of each modality's logits and a bias [C], by the cross-entropy on rows that their probes did not see."""
    names = list(sources[0][0])
    unseen: dict[str, list[Tensor]] = {name: [] for name in names}
    labels: list[Tensor] = []
    for seen, held in _held_out(sources):
        labels.append(held[1])
        y = F.one_hot(torch.cat([y for _, y in seen]), num_classes).double()
        for name in names:
            weight, bias = fit_probe(torch.cat([features[name] for features, _ in seen]), y)
            unseen[name].append(held[0][name] @ weight.T + bias)
    logits = {name: torch.cat(parts) for name, parts in unseen.items()}
    y_N = torch.cat(labels)
    like = logits[names[0]]
    root = like.new_ones(len(names), requires_grad=True)
    bias_C = like.new_zeros(num_classes, requires_grad=True)

    def loss() -> Tensor:
        together = sum(scale * logits[name] for name, scale in zip(names, root.square(), strict=True))
        return F.cross_entropy(together + bias_C, y_N)

    _minimise(loss, [root, bias_C])
    return dict(zip(names, root.detach().square().tolist(), strict=True)), bias_C.detach()


def _held_out(
    sources: Sequence[tuple[Features, Tensor]],
) -> list[tuple[list[tuple[Features, Tensor]], tuple[Features, Tensor]]]:
    """Each source against all others; of a single one every fold against the rest."""
    parts = list(sources)
    if len(parts) == 1:
        features, labels = parts[0]
        fold_N = torch.empty_like(labels)
        fold_N[labels.argsort(stable=True)] = (
            torch.arange(len(labels), device=labels.device) % FOLDS
        )  # each fold has all classes
        parts = [
            ({name: x[fold_N == fold] for name, x in features.items()}, labels[fold_N == fold])
            for fold in range(min(FOLDS, len(labels)))
        ]
    return [([*parts[:at], *parts[at + 1 :]], part) for at, part in enumerate(parts)]


def _self_trained(
    sources: Sequence[tuple[Features, Tensor]],
    target: Features,
    soft_NC: Tensor,
    weight_N: Tensor,
    log_prior_C: Tensor,
    strength: float,
) -> tuple[dict[str, Tensor], Tensor]:
    names, num_classes = list(target), soft_NC.shape[1]
    domains = [*(features for features, _ in sources), target]
    x = torch.cat([torch.cat([features[name] for name in names], 1) for features in domains])
    hard = F.one_hot(torch.cat([labels for _, labels in sources]), num_classes).double()
    importance = torch.cat([x.new_full((len(hard),), SOURCE_WEIGHT), weight_N])
    probe, bias = fit_probe(x, torch.cat([hard, soft_NC]), importance)
    weight = dict(zip(names, probe.split([target[name].shape[1] for name in names], 1), strict=True))
    return weight, bias + strength * prior_shift(linear_logits(target, weight, bias), log_prior_C)


def linear_logits(features: Features, weight: Mapping[str, Tensor], bias: Tensor | float = 0.0) -> Tensor:
    """[N, C] of standardised features."""
    return torch.as_tensor(bias + sum(features[name] @ matrix.T for name, matrix in weight.items()))


def principal_components(standardised: Features) -> dict[str, Tensor]:
    """The 64 leading principal directions of features [N, K], all modalities together, of unit length, by modality [64, K]; zero
    beyond their rank."""
    rows = torch.linspace(0, len(next(iter(standardised.values()))) - 1, MOST_DECOMPOSED).round().long().unique()
    x = torch.cat([x[rows.to(x.device)] for x in standardised.values()], 1)
    _, size_R, direction_RK = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    direction_RK = direction_RK[size_R > 1e-6 * size_R.amax().clamp_min(1e-12)][:FUSED]
    largest_R = direction_RK.gather(1, direction_RK.abs().argmax(1, keepdim=True))
    component_FK = F.pad(direction_RK * largest_R.sign(), (0, 0, 0, FUSED - len(direction_RK)))
    widths = [x.shape[1] for x in standardised.values()]
    return dict(zip(standardised, component_FK.split(widths, 1), strict=True))


def _statistics(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation, [K]."""
    x = x_NK.double()
    return x.mean(0), x.std(0, correction=0).clamp(min=LEAST_DEVIATION)


def _all_statistics(features: Features) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Means and deviations by modality."""
    found = {name: _statistics(x) for name, x in features.items()}
    return {name: mean for name, (mean, _) in found.items()}, {name: std for name, (_, std) in found.items()}


def standardised(x_NK: Tensor) -> Tensor:
    """Less the mean, over the deviation, of its own rows."""
    mean, deviation = _statistics(x_NK)
    return (x_NK.double() - mean) / deviation


def _minimise(loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=200, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
