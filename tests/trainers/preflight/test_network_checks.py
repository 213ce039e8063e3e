"""What is looked at before a network trains."""

from __future__ import annotations

import pytest
import torch

from datasets_manifest.errors import InputError
from trainers.m2can.encoders.given_features import GivenFeatures
from trainers.m2can.encoders.picture import PictureEncoder, SmallResNet
from trainers.m2can.network import M2CAN
from trainers.preflight.network_checks import require_statistics


def network(mode: str) -> M2CAN:
    return M2CAN(GivenFeatures(8), PictureEncoder(SmallResNet(2), 16, mode), num_heads=2, num_classes=3)  # type: ignore[arg-type]


def test_a_map_of_one_pixel_has_no_statistics_of_its_own() -> None:
    with pytest.raises(InputError, match=r"encoders.picture.batch_norm.*per_sample.*data.pictures.crop"):
        require_statistics(network("per_sample"), 32)


@pytest.mark.parametrize(("mode", "crop"), [("per_sample", 64), ("batch", 32), ("frozen", 32)])
def test_others_pass_and_nothing_moves(mode: str, crop: int) -> None:
    made = network(mode)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    require_statistics(made, crop)
    assert made.training
    assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())
