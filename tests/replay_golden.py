"""Replay golden files of the published implementation through the classes that training uses.

    python -m tests.replay_golden tests/golden/*.json [--tolerance 1e-6]

The two formats are described in tests/golden/README.md. Prints the largest error of each record and field; exits 1 if
one lies above the tolerance.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from transformers import BertConfig, BertModel

from trainers.m2can import learning_rates as schedules
from trainers.m2can.batch import Batch
from trainers.m2can.collective import Collective
from trainers.m2can.encoders.given_features import GivenFeatures
from trainers.m2can.encoders.picture import PictureEncoder
from trainers.m2can.encoders.text import TextEncoder
from trainers.m2can.network import M2CAN
from trainers.m2can.objective import Objective
from trainers.m2can.pseudo_labels import score_samples
from trainers.model.build import build_discriminators
from trainers.model.optimizers import build_optimizers
from trainers.published import tensor_names as published
from trainers.recipe.method_sections import OptimizerSection
from trainers.step.step import Step

Record = dict[str, Any]


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def fill(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The files' weight rule over the sorted names of `state`."""
    filled = {}
    for k, name in enumerate(sorted(state)):
        tensor = state[name]
        if not tensor.is_floating_point() or name.endswith(("running_mean", "running_var")):
            filled[name] = tensor
            continue
        shape = tuple(tensor.shape)
        if len(shape) >= 2:
            filled[name] = normal(shape, k) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            filled[name] = normal(shape, k) * 0.1 + float(name.endswith("weight"))
    return filled


class Replay:
    """One record: network, inputs and step, built from the record's rules."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.full = "images_per_sample" in record
        self.classes, self.batch, self.domains = record["num_classes"], record["batch"], record["domains"]
        heads = {int(m[1]) for name in record["weights_after"] if (m := re.match(r"classifiers\.(\d+)\.", name))}
        # The whole network's records name only some weights; the published code has two sources.
        self.num_sources = max(2, self.domains - 1) if self.full else len(heads)
        self.network = self._network().double()
        state = published.to_published(self.network.state_dict())
        ours, unknown = published.from_published(fill(state))
        assert not unknown, unknown
        self.network.load_state_dict(ours)
        self.discriminators = build_discriminators(self.num_sources, self.classes).double()
        for j, module in enumerate(self.discriminators):
            linear = {f"linear.{k}": v for k, v in module.linear.state_dict().items()}
            weights = fill(linear)
            module.linear.weight.data = weights["linear.weight"] * (1 if self.full else 1 + 0.1 * j)
            module.linear.bias.data = weights["linear.bias"]
        optimizer, discriminator_optimizer = build_optimizers(
            self.network, self.discriminators, OptimizerSection(lr=record.get("lr", {}))
        )
        steps = 10
        schedule = schedules.multistep([]) if self.full else schedules.poly(steps, 0.99, 1e-6)
        if self.full:
            for group in discriminator_optimizer.param_groups:
                group["lr"] = group["base_lr"] = 0.0
        weights = {name: record["weights"].get(name, 0.0) for name in ("cmcfa", "cdcfa", "cdafa", "mcc")}
        self.step = Step(
            network=self.network,
            model=self.network,
            discriminators=self.discriminators,
            objective=Objective(
                num_sources=self.num_sources,
                temperature=record.get("temperature", 2.0),
                smoothing=record.get("discriminator_eps", 0.8),
                weights=weights,
            ),
            optimizer=optimizer,
            discriminator_optimizer=discriminator_optimizer,
            schedule=schedule,
            rho=record.get("rho", 0.05),
            collective=Collective(),
        )

    def _network(self) -> M2CAN:
        if not self.full:
            return M2CAN(GivenFeatures(768), GivenFeatures(2048), self.num_sources, self.classes)
        config = BertConfig(
            vocab_size=1000,
            num_hidden_layers=1,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        backbone = resnet50(weights=None)
        backbone.fc = nn.Linear(2048, 2048)
        return M2CAN(
            TextEncoder(BertModel(config), "pooler"),
            PictureEncoder(backbone, 2048, "per_sample"),
            self.num_sources,
            self.classes,
        )

    def inputs(self) -> Batch:
        """All domains, both views."""
        return self._batch(range(self.domains), views=2)

    def target_weak(self) -> Batch:
        """The last domain's weak view."""
        return self._batch([self.domains - 1], views=1)

    def _batch(self, domains: Any, views: int) -> Batch:
        B, C, seed = self.batch, self.classes, self.record["seed"]
        labels = torch.tensor([[(3 * b + d) % C for b in range(B)] for d in domains])
        common = {"labels_DB": labels, "num_views": views, "global_batch": B}
        if not self.full:
            text = [normal((B, 768), seed + 10 * d + 1 + v) for v in range(views) for d in domains]
            picture = [normal((B, 2048), seed + 10 * d + 3 + v) for v in range(views) for d in domains]
            return Batch(torch.cat(text), None, torch.cat(picture), None, **common)
        L, px, per_sample = self.record["tokens"], self.record["pixels"], self.record["images_per_sample"]
        mask = torch.tensor([[int(i < L - b % 3) for i in range(L)] for b in range(B)])
        tokens, pictures, owner = [], [], []
        for v in range(views):
            for d in domains:
                i = np.arange(B * L)
                q = seed + 10 * d + 1 + v
                ids = torch.from_numpy((7 * i * i + 13 * i + 31 * q) % 995 + 5).view(B, L)
                tokens.append(ids * mask)
                for b in range(B):
                    row = len(tokens) * B - B + b
                    for j in range(per_sample[b % len(per_sample)]):
                        pictures.append(normal((3, px, px), seed + 1000 * d + 10 * b + j + 500 * v))
                        owner.append(row)
        masks = mask.repeat(len(tokens), 1)
        return Batch(torch.cat(tokens), masks, torch.stack(pictures), torch.tensor(owner), **common)

    def run(self) -> Record:
        """The record as we compute it."""
        batch, found = self.inputs(), []
        for k, wanted in enumerate(self.record["steps"]):
            result: Record = {}
            if k == 0:
                result |= self._first_pass(batch, wanted)
            passes = self.step(batch)
            for name, terms in passes.items():
                values = {term: float(value) for term, value in terms.items()}
                result[name] = {"mcc": 0.0, "cdafa": 0.0, "cmcfa": 0.0, "cdcfa": 0.0} | values | result.get(name, {})
            result["lr_after"] = [group["lr"] for group in self.step.optimizers[0].param_groups]
            result["ad_lr_after"] = [group["lr"] for group in self.step.optimizers[1].param_groups]
            found.append(result)
        return {"steps": found} | self._afterwards()

    def _first_pass(self, batch: Batch, wanted: Record) -> Record:
        """What a record states of the first pass besides its terms; the step then runs from the same state."""
        result: Record = {}
        if self.full:
            with torch.no_grad():
                self.network.train()
                result["first"] = {"logits": self.network(batch).fused_logits_DBC.tolist()}
            for layer in self.network.picture_encoder.groups.layers:
                layer.pending = {}  # looked at only: the statistics stay
            return result
        outputs = self.network(batch)
        shares = self.step.objective(outputs, batch, Collective())
        torch.stack(list(shares.values())).sum().backward()
        grads = {name: p.grad for name, p in self.network.named_parameters() if p.grad is not None}
        result["grads"] = published.to_published(grads)  # type: ignore[arg-type]
        result["grad_norm_first"] = float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads.values()])))  # type: ignore[union-attr]
        result["fused_logits"] = outputs.fused_logits_DBC.tolist()
        result["fused_features"] = outputs.fused_DBK.detach()
        return result

    @torch.no_grad()
    def _afterwards(self) -> Record:
        state = published.to_published(self.network.state_dict())
        self.network.eval()
        outputs = self.network(self.target_weak())
        scores = score_samples(outputs.logits_HQDBC[:, 0, 0])
        running = {name: value for name, value in state.items() if "running" in name}
        return {
            "weights_after": state,
            "discriminators_after": [
                {f"linear.{k}": v for k, v in module.linear.state_dict().items()} for module in self.discriminators
            ],
            "uacr": {name: getattr(scores, name).tolist() for name in ("label", "score", "prob", "variance")},
            "running": running,
            "eval_logits": outputs.fused_logits_DBC[0].tolist(),
        }


def check_of(tensor: Tensor) -> dict[str, float]:
    """Sum, sum of absolutes, first, last and middle element."""
    x = tensor.detach().double().flatten()
    values = [x.sum(), x.abs().sum(), x[0], x[-1], x[len(x) // 2]]
    return dict(zip(("sum", "abs", "first", "last", "mid"), map(float, values), strict=True))


def error_of(found: Any, wanted: Any) -> float:
    """The largest error in a tree of numbers; see tests/golden/README.md. Not a number counts as infinite."""
    if isinstance(wanted, dict):
        if isinstance(found, Tensor):
            found = check_of(found)
        is_check = "abs" in wanted
        errors = [
            _number_error(found[name], value, wanted["abs"])
            if is_check and name == "sum"
            else error_of(found[name], value)
            for name, value in wanted.items()
        ]
        return max(errors, default=0.0)
    if isinstance(wanted, list):
        if len(found) != len(wanted):
            return float("inf")
        return max((error_of(f, w) for f, w in zip(found, wanted, strict=True)), default=0.0)
    return _number_error(found, wanted, wanted)


def _number_error(found: float | Tensor, wanted: float, scale: float) -> float:
    error = abs(float(found) - wanted) / max(abs(scale), 1e-12)
    return error if np.isfinite(error) else float("inf")


def errors_of(record: Record) -> dict[str, float]:
    """The largest error by field; a step's fields are numbered."""
    found, errors = Replay(record).run(), {}
    for k, step in enumerate(record["steps"]):
        for field, wanted in step.items():
            errors[f"steps[{k}].{field}"] = error_of(found["steps"][k][field], wanted)
    for field in ("weights_after", "discriminators_after", "uacr", "running", "eval_logits"):
        if field in record:
            errors[field] = error_of(found[field], record[field])
    return errors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    worst = 0.0
    for file in arguments.files:
        for number, record in enumerate(json.loads(file.read_text())):
            for field, error in errors_of(record).items():
                worst = max(worst, error)
                mark = "" if error <= arguments.tolerance else "  ABOVE TOLERANCE"
                print(f"{file.name}[{number}] {field:28} {error:9.2e}{mark}")
    print(f"largest error {worst:.2e}, tolerance {arguments.tolerance:.0e}")
    return int(worst > arguments.tolerance)


if __name__ == "__main__":
    sys.exit(main())
