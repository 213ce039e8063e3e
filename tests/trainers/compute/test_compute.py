"""What a step computes in: parts, recomputed activations, half precision, memory layouts. The result is the same step."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets_manifest.errors import InputError
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.compute.device_batches import PictureForm
from trainers.compute.precision import (
    choose_kernels,
    choose_layout,
    computed_in,
    described,
    eval_batch_size,
    for_prediction,
    picture_form,
    predicting,
    with_chosen_precision,
)
from trainers.encoders.encoders import text_config
from trainers.m2can.collective import Collective
from trainers.model.build import build_network
from trainers.model.predictor import Predictor
from trainers.recipe import Recipe, apply_override, make_recipe
from trainers.step.loss_scale import LossScale

EXACT = ["train.precision=fp64", "encoders.picture.batch_norm=per_sample", "sam.rho=0.05", "train.epochs=1"]


def first_epoch(folder: Path, *settings: str) -> dict[str, float]:
    metrics, _ = make_loop(prepared_run(folder, list(settings))).run_epoch()
    return {name: value for name, value in metrics.items() if not name.startswith(("time/", "speed/", "lr/"))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cards")


@pytest.fixture(scope="module")
def exact(folder: Path) -> dict[str, float]:
    return first_epoch(folder, *EXACT)


@pytest.mark.parametrize(
    "settings",
    [
        ["train.accumulate=3"],
        ["encoders.activation_checkpointing=both"],
        ["train.accumulate=2", "encoders.activation_checkpointing=pictures"],
    ],
    ids=" ".join,
)
def test_an_epoch_is_the_same(folder: Path, exact: dict[str, float], settings: list[str]) -> None:
    found = first_epoch(folder, *EXACT, *settings)
    assert list(found) == list(exact)
    for name, value in exact.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(folder: Path, precision: str) -> None:
    single = first_epoch(folder, "train.epochs=1", "sam.rho=0.05")
    half = first_epoch(folder, "train.epochs=1", "sam.rho=0.05", f"train.precision={precision}")
    assert half["loss/total"] != single["loss/total"]
    assert half["loss/total"] == pytest.approx(single["loss/total"], rel=0.05)


def test_parts_need_statistics_of_their_own(folder: Path) -> None:
    with pytest.raises(InputError, match=r"train\.accumulate.*per_sample"):
        prepared_run(folder, ["train.accumulate=2"])


def test_what_the_device_lacks_is_refused(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(InputError, match=r"train\.precision.*tf32"):
        prepared_run(folder, ["train.precision=tf32"])
    with pytest.raises(InputError, match=r"cluster\.device"):
        prepared_run(folder, ["cluster.device=cuda"])


def of_precision(precision: str) -> Recipe:
    return make_recipe({"data": {"sources": ["a"], "target": "b"}, "train": {"precision": precision}})


def test_the_presets_choose_by_the_device_or_stay_exact() -> None:
    for preset, precision in (("recommended", "auto"), ("published", "fp32")):
        recipe = make_recipe({"preset": preset, "data": {"sources": ["a"], "target": "b"}})
        assert recipe.train.precision == precision
        assert computed_in(recipe, torch.device("cpu")) == "fp32"


@pytest.mark.parametrize(
    ("stated", "capability", "chosen", "tf32"),
    [
        ("auto", (9, 0), "bf16", True),
        ("auto", (8, 0), "bf16", True),
        ("auto", (7, 5), "fp32", False),
        ("bf16", (8, 0), "bf16", True),
        ("fp16", (7, 0), "fp16", True),
        ("tf32", (8, 6), "tf32", True),
        ("fp32", (9, 0), "fp32", False),
    ],
)
def test_what_a_gpu_computes_in(
    monkeypatch: pytest.MonkeyPatch, stated: str, capability: tuple[int, int], chosen: str, tf32: bool
) -> None:
    """The GPU is made up; the settings of the process are put back."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not tf32)
    set_to: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", set_to.append)
    recipe, device = of_precision(stated), torch.device("cuda", 0)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        choose_kernels(recipe, device)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert computed_in(recipe, device) == chosen
    assert (set_to, torch.backends.cudnn.allow_tf32) == (["high" if tf32 else "highest"], tf32)
    assert described(recipe, device) == f"computes in {chosen}" + (
        "; what stays float32 is rounded to TF32" if chosen in ("bf16", "fp16") else ""
    )


class Others(Collective):
    """Two workers, of which the other one computes in fp32."""

    world_size = 2


def test_all_workers_compute_in_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.compute.precision._is_ampere", lambda device: True)
    cpu = torch.device("cpu")
    assert with_chosen_precision(of_precision("auto"), cpu, Collective()).train.precision == "bf16"
    assert with_chosen_precision(of_precision("auto"), cpu, Others()).train.precision == "fp32"
    assert with_chosen_precision(of_precision("tf32"), cpu, Others()).train.precision == "tf32"


def test_loss_scale_halves_on_overflow_and_doubles_after_a_while() -> None:
    scale = LossScale(value=4.0)
    gradient = torch.full((3,), 8.0)
    scale.unscale([gradient])
    assert gradient.tolist() == [2.0] * 3
    assert scale.lower()
    assert scale.value == 2
    for _ in range(2000):
        scale.step_succeeded()
    assert (scale.value, scale.steady) == (4, 0)
    scale.value = 1
    assert not scale.lower()


@pytest.mark.parametrize(
    ("settings", "device", "channels_last"),
    [
        (["train.precision=bf16"], "cuda", True),
        (["train.precision=tf32"], "cuda", True),
        (["train.precision=fp32"], "cuda", False),
        (["train.precision=bf16"], "cpu", False),
        (["train.precision=bf16", "encoders.picture.batch_norm=per_sample"], "cuda", False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_channels_lie_last_where_tensor_cores_compute(settings: list[str], device: str, channels_last: bool) -> None:
    encoders = {"text": {"name": "tiny"}, "picture": {"name": "tiny:4"}}
    tree: dict[str, Any] = {"data": {"sources": ["a"], "target": "b"}, "encoders": encoders}
    for setting in settings:
        apply_override(tree, setting)
    recipe = make_recipe(tree)
    network = build_network(recipe, text_config(recipe.encoders.text, 40, 0, 16), 3, load_weights=False)
    choose_layout(network, recipe, torch.device(device))
    weights = [w for w in network.picture_encoder.parameters() if w.dim() == 4 and w.shape[1] > 1 and w.shape[2] > 1]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) == channels_last for w in weights)


@pytest.mark.parametrize(
    ("settings", "device", "form"),
    [
        (["train.precision=bf16"], "cuda", PictureForm(torch.bfloat16, channels_last=True)),
        (["train.precision=fp16", "encoders.picture.batch_norm=per_sample"], "cuda", PictureForm(torch.float16)),
        (["train.precision=tf32"], "cuda", PictureForm(torch.float32, channels_last=True)),
        (["train.precision=fp32"], "cuda", PictureForm(torch.float32)),
        (["train.precision=bf16"], "cpu", PictureForm(torch.float32)),
        (["train.precision=fp64"], "cpu", PictureForm(torch.float64)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_pictures_arrive_as_the_encoder_computes(settings: list[str], device: str, form: PictureForm) -> None:
    tree: dict[str, Any] = {"data": {"sources": ["a"], "target": "b"}, "encoders": {"picture": {"batch_norm": "batch"}}}
    for setting in settings:
        apply_override(tree, setting)
    assert picture_form(make_recipe(tree), torch.device(device)) == form


def test_rows_that_are_scored_at_a_time() -> None:
    recipe = of_precision("fp32")
    assert [eval_batch_size(recipe, torch.device(kind)) for kind in ("cpu", "cuda")] == [64, 256]
    stated = recipe.model_copy(update={"train": recipe.train.model_copy(update={"eval_batch_size": 7})})
    assert [eval_batch_size(stated, torch.device(kind)) for kind in ("cpu", "cuda")] == [7, 7]


@pytest.mark.parametrize(
    ("precision", "rounded", "half"), [("bf16", True, "bf16"), ("tf32", True, None), ("fp32", False, None)]
)
def test_a_gpu_predicts_in_what_it_was_trained_in(
    monkeypatch: pytest.MonkeyPatch, precision: str, rounded: bool, half: str | None
) -> None:
    """The GPU is made up: its settings can be looked at without one. The process's own are put back."""
    entered: list[tuple[str, torch.dtype]] = []

    def autocast(device: str, dtype: torch.dtype) -> Any:
        entered.append((device, dtype))
        return contextlib.nullcontext()

    monkeypatch.setattr(torch, "autocast", autocast)
    seen = lambda: (  # noqa: E731
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.cudnn_sdp_enabled(),
    )
    before = seen()
    with predicting(of_precision(precision), torch.device("cuda", 0)):
        assert seen() == ("high" if rounded else "highest", rounded, False)
    assert seen() == before
    assert entered == ([("cuda", torch.bfloat16)] if half else [])


@pytest.mark.parametrize(
    ("trained_in", "device", "ampere", "predicts_in"),
    [
        ("bf16", "cuda", True, "bf16"),
        ("bf16", "cuda", False, "fp32"),
        ("tf32", "cuda", False, "fp32"),
        ("fp16", "cuda", False, "fp16"),
        ("bf16", "cpu", False, "fp32"),
        ("fp16", "cpu", False, "fp32"),
        ("fp64", "cpu", False, "fp64"),
    ],
)
def test_what_a_trained_network_predicts_in(
    monkeypatch: pytest.MonkeyPatch, trained_in: str, device: str, ampere: bool, predicts_in: str
) -> None:
    monkeypatch.setattr("trainers.compute.precision._is_ampere", lambda device: ampere)
    assert for_prediction(of_precision(trained_in), torch.device(device)).train.precision == predicts_in


def test_a_cpu_predicts_in_float32(folder: Path) -> None:
    """bf16 convolutions are a hundred times slower where a CPU has no instructions for them."""
    loop = make_loop(prepared_run(folder, ["train.precision=bf16"]))
    predictor = Predictor(loop.network, loop.card, loop.device)
    found = predictor.predict(["a lovely day", "rain"]).probs
    exact = make_loop(prepared_run(folder, ["train.precision=fp32"]))
    assert np.array_equal(
        found, Predictor(exact.network, exact.card, exact.device).predict(["a lovely day", "rain"]).probs
    )
