"""The task term: cross-entropies of labels and pseudo labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.collective import Collective
from trainers.m2can.losses.inputs import TermInputs


def count_labelled(batch: Batch, collective: Collective) -> Tensor:
    """Samples with a label in the global batch, by domain, [D]."""
    return collective.sum_((batch.labels_DB >= 0).sum(1))


def term(inputs: TermInputs) -> Tensor:
    return task(inputs.outputs, inputs.batch, inputs.collective, inputs.weight_D)


def task(outputs: Outputs, batch: Batch, collective: Collective, weight_D: Tensor | None = None) -> Tensor:
    """Mean over the domains of three cross-entropies: heads on all view pairs, their mean on weak × weak, single modalities.

    For each domain: the mean over heads and the four view pairs of the cross-entropy; plus that of the heads' mean
    logits on weak × weak; plus the mean of the text head's and the picture head's on the weak views. Samples without a
    label (-1) do not count; a domain without any counts as zero.

    Source: Zhao et al. 2025.

    Args:
        weight_D: of each domain's part; None: 1.

    Returns:
        scalar, this worker's share.
    """
    labels_DB = batch.labels_DB
    counted_D = count_labelled(batch, collective) if batch.labelled_D is None else batch.labelled_D
    labelled_D = counted_D.clamp_min(1).to(outputs.fused_DBK.dtype)

    def cross_entropy(logits_XDBC: Tensor) -> Tensor:
        """Sum over domains of the mean over X and the domain's labelled samples."""
        flat_labels = labels_DB.expand(logits_XDBC.shape[:-1])
        loss_XDB = F.cross_entropy(
            logits_XDBC.flatten(0, -2), flat_labels.flatten(), ignore_index=-1, reduction="none"
        ).view(flat_labels.shape)
        each_D = loss_XDB.mean(0).sum(1) / labelled_D
        return (each_D if weight_D is None else each_D * weight_D).sum()

    heads = cross_entropy(outputs.logits_HQDBC.flatten(0, 1))
    fused = cross_entropy(outputs.fused_logits_DBC.unsqueeze(0))
    text = cross_entropy(outputs.text_logits_DBC.unsqueeze(0))
    picture = cross_entropy(outputs.picture_logits_DBC.unsqueeze(0))
    return (heads + fused + (text + picture) / 2) / batch.num_domains
