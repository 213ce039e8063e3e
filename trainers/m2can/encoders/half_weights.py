"""Half-precision copies of an encoder's weights for one forward pass.

Autocast casts each weight, and each weight's gradient, by a kernel of its own, and takes layer norm to float32. For an
encoder of some hundred weights that is a quarter of a step's kernels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

# Weights that are cast together: few kernels, and their gradients arrive while earlier layers still work.
_GROUP = 2**23


class HalfWeights:
    """Calls a model with copies of its linear, convolution and layer-norm weights in autocast's type, cast in groups.

    Parameters stay as they are and get their gradients in their own type. Without autocast the model is simply called.
    The model's layer norms take and give half precision from now on, with statistics in float32.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.enabled = True  # false for whoever compiles the model or computes its blocks again in the backward pass
        self._groups: list[list[tuple[str, nn.Module, str]]] = [[]]  # name in the model; module and name in it
        for module in model.modules():
            if type(module) is nn.LayerNorm:
                module.__class__ = HalfLayerNorm
        seen: set[int] = set()
        numbers = 0
        for path, module in model.named_modules():
            if not isinstance(module, nn.Linear | _ConvNd | HalfLayerNorm):
                continue
            for name, weight in module.named_parameters(recurse=False):
                if id(weight) in seen:
                    continue
                seen.add(id(weight))
                if numbers > _GROUP:
                    self._groups.append([])
                    numbers = 0
                numbers += weight.numel()
                self._groups[-1].append((f"{path}.{name}" if path else name, module, name))

    def call(self, *inputs: Any, **named: Any) -> Any:
        """The model's output for these inputs."""
        device = next(self.model.parameters()).device.type
        if not (self.enabled and torch.is_autocast_enabled(device)):
            return self.model(*inputs, **named)
        dtype = torch.get_autocast_dtype(device)
        weights: dict[str, Tensor] = {}
        for group in self._groups:
            if group:
                copies = _Cast.apply(dtype, *(getattr(module, name) for _, module, name in group))
                weights |= {path: copy for (path, _, _), copy in zip(group, copies, strict=True)}
        return torch.func.functional_call(self.model, weights, inputs, named)


class HalfLayerNorm(nn.LayerNorm):
    """torch's layer norm; under autocast it takes half precision as it comes and always gives it."""

    def forward(self, input: Tensor) -> Tensor:
        device = input.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(input)
        with torch.autocast(device, enabled=False):
            weight, bias = (None if x is None else x.to(input.dtype) for x in (self.weight, self.bias))
            y = F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)
        return y.to(torch.get_autocast_dtype(device))


class _Cast(torch.autograd.Function):
    """Copies of tensors in another type; the gradients come back in the tensors' own."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.weights = weights
        return tuple(_copies(weights, [torch.empty_like(w, dtype=dtype) for w in weights]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found = [n for n, grad in enumerate(grads) if grad is not None]
        made = _copies([grads[n] for n in found], [torch.empty_like(ctx.weights[n]) for n in found])
        placed: list[Tensor | None] = [None] * (1 + len(grads))
        for n, grad in zip(found, made, strict=True):
            placed[1 + n] = grad
        return tuple(placed)


def _copies(sources: Any, targets: list[Tensor]) -> list[Tensor]:
    """Fill `targets`."""
    if targets:
        torch._foreach_copy_([_without_sides(x) for x in targets], [_without_sides(x) for x in sources])
    return targets


def _without_sides(x: Tensor) -> Tensor:
    """A 1×1 filter has two strides for one order in memory; torch copies many tensors at once if all strides agree."""
    return x.squeeze() if x.dim() > 2 else x
