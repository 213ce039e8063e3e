"""Each modality's head learns what the other one predicts, on all domains."""

from __future__ import annotations

from torch import Tensor

from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.losses.cross_modal import divergence
from trainers.m2can.losses.inputs import TermInputs


def term(inputs: TermInputs) -> Tensor:
    return cross_prediction(inputs.outputs, inputs.batch)


def cross_prediction(outputs: Outputs, batch: Batch) -> Tensor:
    """Σ over the domains of the mean of KL(p_picture ‖ p_text) + KL(p_text ‖ p_picture), the first of each held constant.

    Source: after Jaritz et al., "xMUDA", CVPR 2020, arXiv:1911.12676, which has further heads for the imitation.

    Returns:
        scalar, this worker's share.
    """
    text_DBC, picture_DBC = outputs.text_logits_DBC, outputs.picture_logits_DBC
    both_DB = divergence(picture_DBC.detach(), text_DBC) + divergence(text_DBC.detach(), picture_DBC)
    return both_DB.sum() / batch.global_batch
