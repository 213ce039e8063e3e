"""`train.compile`: compiled blocks give the same step, whatever the texts' lengths and the batch norm."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModel

from benchmarks.step_parts import QUICK, make_labels, make_network, make_rows, make_step, recipe_of
from datasets_manifest.errors import InputError
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.compute.compiled import compilable_blocks, compile_encoders
from trainers.compute.device_batches import to_batch
from trainers.loop.observer import Observer
from trainers.m2can.encoders.picture import SmallResNet
from trainers.step.step import Step

CPU = torch.device("cpu")


def made(mode: str, preset: str, backend: Any = None) -> Step:
    recipe = recipe_of(QUICK, preset, f"encoders.picture.batch_norm={mode}")
    network = make_network(QUICK, recipe)
    if backend is not None:
        compile_encoders(network, CPU, backend)
    return make_step(network, recipe, CPU)


def totals_of(step: Step, seeds: range) -> list[float]:
    """Of steps whose texts differ in length."""
    found = []
    for seed in seeds:
        batch = to_batch(
            make_rows(QUICK, 2, QUICK.rows, seed), make_labels(QUICK, seed), device=CPU, dtype=torch.float32
        )
        found.append(float(step(batch)["second"]["total"]))
    step.check()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "preset"), [("batch", "recommended"), ("frozen", "recommended"), ("per_sample", "published")]
)
def test_compiled_blocks_give_the_same_steps(mode: str, preset: str) -> None:
    """Without code for the CPU, which takes minutes: what is traced, cut and reused is the same."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    plain, compiled = made(mode, preset), made(mode, preset, counter)
    assert totals_of(compiled, range(2)) == pytest.approx(totals_of(plain, range(2)), rel=1e-5)
    graphs = counter.frame_count
    assert graphs > 0
    assert totals_of(compiled, range(2, 5)) == pytest.approx(totals_of(plain, range(2, 5)), rel=1e-5)
    assert counter.frame_count == graphs  # other lengths are no other graphs
    wanted = plain.network.state_dict()
    assert compiled.network.state_dict().keys() == wanted.keys()
    for name, tensor in compiled.network.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-4, msg=name)
    assert compiled.network.text_encoder.packs


def test_the_compilable_blocks_an_encoder() -> None:
    bert = BertModel(BertConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=1, intermediate_size=32))
    clip = CLIPVisionConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=1, intermediate_size=32)
    kinds = {
        "BertLayer": (bert, 3),
        "Bottleneck": (torchvision.models.resnet50(), 16),
        "EncoderBlock": (torchvision.models.vit_b_32(), 12),
        "CLIPEncoderLayer": (CLIPVisionModel(clip), 2),
        "BasicBlock": (SmallResNet(8), 4),
    }
    for kind, (model, number) in kinds.items():
        assert [type(block).__name__ for block in compilable_blocks(model)] == [kind] * number


def test_an_encoder_without_blocks_is_refused() -> None:
    recipe = recipe_of(QUICK, "recommended")
    network = make_network(QUICK, recipe)
    network.picture_encoder.model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match=r"train\.compile.*picture encoder Sequential is not made of blocks"):
        compile_encoders(network, CPU, "aot_eager")


def test_what_is_computed_twice_is_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    settings = ["train.compile=true", "encoders.activation_checkpointing=text", "cluster.device=cpu"]
    with pytest.raises(InputError, match=r"encoders\.activation_checkpointing.*train\.compile"):
        prepared_run(tmp_path, settings)


def test_compiling_without_a_compiler_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"train\.compile.*C\+\+ compiler"):
        prepared_run(tmp_path, ["train.compile=true", "cluster.device=cpu"])


class Told(Observer):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def compiled(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.mark.slow
@pytest.mark.skipif(not any(shutil.which(name) for name in ("g++", "clang++", "c++")), reason="no C++ compiler")
def test_a_compiled_run_has_the_same_losses(tmp_path: Path) -> None:
    settings = ["train.epochs=1", "data.samples_per_epoch=12"]
    told = Told()
    loops = [make_loop(prepared_run(tmp_path, [*settings, f"train.compile={on}"]), told) for on in ("false", "true")]
    plain, compiled = (loop.run_epoch()[0] for loop in loops)
    assert list(plain) == list(compiled)
    for name in (name for name in plain if name.startswith("loss/")):
        assert compiled[name] == pytest.approx(plain[name], rel=1e-5), name
    assert len(told.seconds) == 1  # of the first step of the compiled run
    assert told.seconds[0] > 0
    assert loops[0].network.state_dict().keys() == loops[1].network.state_dict().keys()
