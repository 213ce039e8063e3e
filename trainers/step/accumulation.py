"""A worker's slice of the batch goes through the network at once or in parts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from trainers.m2can.batch import Batch, Outputs


class Accumulation:
    """Forward and backward pass of the network, in parts without changing the result.

    All outputs are computed without a graph, the terms and the outputs' gradients from all of them, then each part again
    with its graph. This costs a forward pass more; activations are those of one part. Dropout draws the same both times.

    Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021,
    arXiv:2101.06983.

    Args:
        model: the network, or the network in DistributedDataParallel.
        network: the network itself.
        parts: 1: at once.
        autocast: makes the context of a forward pass.
        device: where dropout draws.
    """

    def __init__(
        self,
        model: Callable[[Batch], Outputs],
        network: Callable[[Batch], Outputs],
        parts: int,
        autocast: Callable[[], AbstractContextManager[None]],
        device: torch.device,
    ) -> None:
        self.model, self.network, self.parts, self.autocast, self.device = model, network, parts, autocast, device
        self._batches: list[Batch] = []
        self._outputs: Outputs | None = None
        self._states: list[Tensor] = []  # of the generator before each part

    def forward(self, batch: Batch) -> Outputs:
        """The outputs of the whole slice, in float32 or more."""
        if self.parts == 1:
            with self.autocast():
                return self.model(batch).single()
        # A worker with a single row does this too: all workers must exchange in the same order.
        self._batches, self._states = batch.split(self.parts), []
        found = []
        with torch.no_grad():
            for part in self._batches:
                self._states.append(self._generator_state())
                with self.autocast():
                    found.append(self.network(part).single())
        self._outputs = Outputs.leaves(found)
        return self._outputs

    def backward(self) -> None:
        """In parts: from the outputs' gradients to the weights'. The last part exchanges them."""
        if self._outputs is None:
            return
        after = self._generator_state()
        for part, state in zip(self._batches, self._states, strict=True):
            self._set_generator_state(state)
            with nullcontext() if part is self._batches[-1] else self._without_exchange():
                with self.autocast():
                    again = self.model(part).single()
                start = part.offset - self._batches[0].offset
                pairs = [
                    (x, whole.grad.narrow(-2, start, part.size))
                    for x, whole in zip(again.tensors(), self._outputs.tensors(), strict=True)
                    if whole.grad is not None
                ]
                torch.autograd.backward([x for x, _ in pairs], [gradient for _, gradient in pairs])
        self._set_generator_state(after)
        self._outputs = None

    def _without_exchange(self) -> AbstractContextManager[None]:
        no_sync = getattr(self.model, "no_sync", None)
        return no_sync() if no_sync is not None else nullcontext()

    def _generator_state(self) -> Tensor:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def _set_generator_state(self, state: Tensor) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)
