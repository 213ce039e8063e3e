"""Batch normalisation over groups of pictures, the same on any number of workers, in three modes.

per_sample  The pictures of a sample in one view are a group, as in the published code, which calls the picture encoder
            once for each sample. Here one call takes all groups, and the running statistics move in closed form as
            if the calls had come one after another (order: domain, then weak samples, then strong samples).
batch       All pictures of the global batch are one group, synchronised over the workers.
frozen      The running statistics are used and do not move.

The running statistics move in PictureGroups.commit, once for each pass of a step. A forward pass only stores its
contribution in `pending`, by part of the batch, so that computing it again (activation checkpointing) stores the same.
With accumulation over parts of a batch, per_sample and frozen are exact; Step refuses `batch`.

Suffixes: P pictures, G groups, N rows of a batch, B samples, V views, D domains, R views and domains, C channels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.m2can.batch import Batch
from trainers.m2can.collective import Collective

BatchNormMode = Literal["per_sample", "batch", "frozen"]


class PictureGroups:
    """Which pictures are normalised together; all layers of an encoder share it, and each training pass sets it."""

    def __init__(self, mode: BatchNormMode) -> None:
        self.mode = mode
        self.collective = Collective()
        self.layers: list[GroupedBatchNorm2d] = []
        self.part = 0  # first sample, in the worker's slice, of the part that the encoder computes now
        self._taken: list[Tensor] = []  # contributions of the passes since the last commit
        self._moved: list[GroupedBatchNorm2d] = []  # the layers that they are of
        self._ordered: Batch | None = None  # the batch whose order of calls is known: a step with SAM asks twice
        self._weights: dict[tuple[float, torch.dtype], Tensor] = {}  # see group_weights
        self._zeros: dict[nn.Module, Tensor] = {}  # see zeros_for

    @property
    def needs_whole_batch(self) -> bool:
        """Whether a layer's statistics are the batch's, so that accumulation over parts of a batch would change them."""
        return self.mode == "batch" and any(layer.weight.requires_grad for layer in self.layers)

    def begin(self, batch: Batch) -> None:
        """Set the groups of a pass. A picture whose owner is N is a placeholder and counts nowhere."""
        assert batch.picture_owner is not None
        self._weights, self._zeros = {}, {}
        self.owner_P = batch.picture_owner
        self.num_groups = batch.num_rows + 1  # the last group is the placeholder's
        count_G = batch.pictures_of_rows()
        self.count_G = batch.counts_on(self.owner_P.device)
        counts = count_G.numpy()
        self.real_P = (self.owner_P < batch.num_rows) if counts[-1] else None
        self.one_picture_each = bool((counts[:-1] == 1).all()) and self.real_P is None
        whole = batch.whole or batch
        self.part = batch.offset - whole.offset
        if self.mode == "per_sample":
            if self._ordered is not whole:
                self._order_groups(whole)
            mine_VDB = self.calls_after_VDB[..., batch.offset : batch.offset + batch.size]
            self.calls_after_G = torch.cat([mine_VDB.flatten(), mine_VDB.new_zeros(1)])
            self.exists_G = F.pad(self.count_G[:-1] > 0, (0, 1))
        elif (
            self.needs_whole_batch
        ):  # frozen layers exchange nothing: the workers' slices may have different numbers of parts
            self.global_pictures = self.collective.sum_(self.count_G[:-1].sum())
            self.total_calls = (self.global_pictures > 0).double()  # a global batch without any picture moves nothing

    def _order_groups(self, whole: Batch) -> None:
        """How many calls the published code makes after each group's, over all workers; none for an empty sample."""
        rows = whole.num_views * whole.num_domains
        exists_RB = (whole.counts_on(self.owner_P.device)[:-1] > 0).view(rows, whole.size, 1)
        everyone = self.collective.gather(exists_RB.double(), whole.global_batch).squeeze(-1)
        ordered_DVB = everyone.view(whole.num_views, whole.num_domains, -1).transpose(0, 1)
        later_DVB = ordered_DVB.flatten().flip(0).cumsum(0).flip(0).view_as(ordered_DVB) - 1
        self.calls_after_VDB = later_DVB.transpose(0, 1)
        self.total_calls = ordered_DVB.sum()
        self._ordered = whole

    def group_weights(self, momentum: float, dtype: torch.dtype) -> Tensor:
        """Weight of each group's statistics in the running statistics after the pass, [G]; the same for all layers.

        m·(1−m)^(calls after the group's) for a momentum m.
        """
        key = momentum, dtype
        if key not in self._weights:
            self._weights[key] = self._group_weights(momentum).to(dtype)
        return self._weights[key]

    def _group_weights(self, momentum: float) -> Tensor:
        return momentum * (1 - momentum) ** self.calls_after_G * self.exists_G

    def zeros_for(self, layer: GroupedBatchNorm2d) -> Tensor:
        """Zeros for a layer's statistics in this pass, [2, C]; one tensor is filled for all layers."""
        if not self._zeros:
            sizes = [2 * other.num_features for other in self.layers]
            parts = layer.weight.new_zeros(sum(sizes)).split(sizes)
            self._zeros = {other: part.view(2, -1) for other, part in zip(self.layers, parts, strict=True)}
        return self._zeros[layer]

    def shares(self) -> list[Tensor]:
        """What this worker's pass adds to the running statistics; to be summed over the workers and given to `take`."""
        return self._added() if self.mode == "per_sample" else []

    def _added(self) -> list[Tensor]:
        """The layers' contributions in one tensor; an empty list if the pass moves nothing."""
        added = [list(layer.pending.values()) for layer in self.layers if layer.pending]
        sums = [parts[0] if len(parts) == 1 else torch.stack(parts).sum(0) for parts in added]
        return [torch.cat([part.flatten() for part in sums])] if sums else []

    def take(self, shares: list[Tensor] | None = None) -> None:
        """Set a pass's contribution aside for `commit`.

        Args:
            shares: the sum of `shares()` over the workers; None or empty with one worker, and in the mode `batch`,
                where each worker has the whole already.
        """
        added = shares or self._added()
        if added:
            self._taken += added
            self._moved = [layer for layer in self.layers if layer.pending]
        for layer in self.layers:
            layer.pending = {}

    def commit(self, unless: Tensor | None = None) -> None:
        """Move the running statistics by the passes since the last time, one after another.

        Args:
            unless: bool, on the device: where it is true, nothing moves.
        """
        self.take()
        for added in self._taken:
            self._move(added, self.total_calls, unless)
        self._taken = []

    def _move(self, added: Tensor, total_calls: Tensor, unless: Tensor | None) -> None:
        if unless is not None:
            added, total_calls = added.masked_fill(unless, 0), total_calls.masked_fill(unless, 0)
        moved = self._moved
        parts = [part.view(2, -1) for part in added.split([2 * layer.num_features for layer in moved])]
        for momentum in {layer.momentum for layer in moved}:  # one for all layers, as a rule
            same = [(layer, part) for layer, part in zip(moved, parts, strict=True) if layer.momentum == momentum]
            running: list[Tensor] = [getattr(layer, f"running_{x}") for layer, _ in same for x in ("mean", "var")]
            new = [x for _, part in same for x in part.unbind()]
            if self.mode == "batch":
                new = list(torch._foreach_mul(new, momentum))  # type: ignore[arg-type]
            keep = ((1 - momentum) ** total_calls).to(running[0].dtype)  # type: ignore[operator]
            torch._foreach_mul_(running, keep)
            torch._foreach_add_(running, new)
        calls = total_calls.long()
        tracked: list[Tensor] = [getattr(layer, "num_batches_tracked") for layer in moved]  # noqa: B009
        torch._foreach_add_(tracked, [calls] * len(moved))

    def forget(self) -> None:
        """Drop the batch and the contributions of its passes: after a step, or because a pass was not finite."""
        self._ordered, self._taken = None, []
        for layer in self.layers:
            layer.pending = {}


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d, same parameters and buffers, that in training normalises by the encoder's PictureGroups."""

    groups: PictureGroups
    # By PictureGroups.part: contribution to running mean and variance, [2, C]; in the mode `batch` still without momentum.
    pending: dict[int, Tensor]

    @classmethod
    def convert(cls, module: nn.Module, groups: PictureGroups) -> nn.Module:
        """Replace every BatchNorm2d below `module`, keeping its parameters and buffers."""
        for name, child in module.named_children():
            setattr(module, name, cls.convert(child, groups))
        if not isinstance(module, nn.BatchNorm2d):
            return module
        layer = cls(module.num_features, module.eps, module.momentum)
        layer._parameters, layer._buffers = module._parameters, module._buffers
        layer._modules = module._modules  # timm's layers hold the dropout and activation that follow
        layer.groups, layer.pending = groups, {}
        groups.layers.append(layer)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """[P, C, height, width] → the same."""
        y = self._normalise(x)
        for following in self.children():
            y = following(y)
        return y

    def _normalise(self, x: Tensor) -> Tensor:
        # A frozen block's statistics do not move either.
        if not self.training or self.groups.mode == "frozen" or not self.weight.requires_grad:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        # In half precision the statistics are float32 and the activations are not copied.
        return self._whole_batch(x) if self.groups.mode == "batch" else self._by_group(x)

    def _by_group(self, x: Tensor) -> Tensor:
        groups, single = self.groups, self.weight.dtype
        if groups.one_picture_each and x.is_contiguous() and x.shape[2] * x.shape[3] > 1:
            return self._by_picture(x) if x.dtype == single else self._by_picture_in_half(x)
        centre_PC = None
        if x.dtype == single:
            var_PC, mean_PC = torch.var_mean(x, (2, 3), correction=0)
        else:  # around each picture's mean, so that the squares keep their digits
            mean_PC = x.mean((2, 3), dtype=single)
            centre_PC = mean_PC.detach().to(x.dtype)
            x = x - centre_PC[..., None, None]
            var_PC = (x * x).mean((2, 3), dtype=single) - (mean_PC - centre_PC).square()
            var_PC = var_PC.clamp_min(0)
        at_P: Tensor | slice = slice(None)
        mean_GC, var_GC = mean_PC, var_PC
        if not groups.one_picture_each:
            owner_P = at_P = groups.owner_P
            share_P1 = (1 / groups.count_G.clamp_min(1).to(single))[owner_P].unsqueeze(1)
            zeros = mean_PC.new_zeros(groups.num_groups, x.shape[1])
            mean_GC = zeros.index_add(0, owner_P, mean_PC * share_P1)
            # Total variance = variance inside the pictures + variance of their means.
            var_GC = zeros.index_add(0, owner_P, (var_PC + (mean_PC - mean_GC[owner_P]).square()) * share_P1)
        number_G1 = (groups.count_G[: len(var_GC)] * x.shape[2] * x.shape[3]).to(single).unsqueeze(1)
        unbiased_GC = var_GC * (number_G1 / (number_G1 - 1).clamp_min(1))
        self._remember(torch.stack([mean_GC, unbiased_GC]))
        scale_GC = self.weight * (var_GC + self.eps).rsqrt()
        if centre_PC is None:
            shift_GC = self.bias - mean_GC * scale_GC
            return x * scale_GC[at_P][..., None, None] + shift_GC[at_P][..., None, None]
        scale_PC = scale_GC[at_P]
        shift_PC = self.bias + (centre_PC - mean_GC[at_P]) * scale_PC
        return x * scale_PC.to(x.dtype)[..., None, None] + shift_PC.to(x.dtype)[..., None, None]

    def _by_picture(self, x: Tensor) -> Tensor:
        """Groups of one picture: torch's group normalisation with a group for each channel."""
        pictures, channels, number = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
        y, mean_PC, rstd_PC = torch.native_group_norm(
            x, self.weight, self.bias, pictures, channels, number, channels, self.eps
        )
        with torch.no_grad():
            var_PC = (rstd_PC**-2 - self.eps).clamp_min(0)
        self._remember(torch.stack([mean_PC, var_PC * (number / (number - 1))]))
        return y

    def _by_picture_in_half(self, x: Tensor) -> Tensor:
        """The same by torch's batch normalisation, each channel of a picture as a channel: float32 statistics."""
        pictures, channels = x.shape[:2]
        seen_2PC = self.weight.new_zeros(2, pictures * channels)
        y = F.batch_norm(
            x.view(1, pictures * channels, *x.shape[2:]),
            seen_2PC[0],
            seen_2PC[1],
            self.weight.repeat(pictures),
            self.bias.repeat(pictures),
            True,
            1.0,
            self.eps,
        )
        self._remember(seen_2PC.view(2, pictures, channels))
        # Not as a view: an activation that works in place would copy it and its gradient.
        return torch.ops.aten._unsafe_view(y, x.shape)

    @torch.no_grad()
    def _remember(self, seen_2GC: Tensor) -> None:
        """Store a pass's contribution; a recomputed forward pass overwrites it with the same.

        Args:
            seen_2GC: the groups' means and unbiased variances.
        """
        groups = self.groups
        assert self.momentum is not None
        # Not a matrix product, which autocast would round.
        weight_G1 = groups.group_weights(self.momentum, seen_2GC.dtype)[: seen_2GC.shape[1]].unsqueeze(1)
        self.pending[groups.part] = (weight_G1 * seen_2GC).sum(1)

    def _whole_batch(self, x: Tensor) -> Tensor:
        groups = self.groups
        if groups.collective.world_size == 1 and groups.real_P is None:
            compiling = torch.compiler.is_compiling()
            seen_2C = self.weight.new_zeros(2, x.shape[1]) if compiling else groups.zeros_for(self)
            self.pending[groups.part] = seen_2C
            return F.batch_norm(x, seen_2C[0], seen_2C[1], self.weight, self.bias, True, 1.0, self.eps)  # fills both
        single = self.weight.dtype
        number = (groups.global_pictures * x.shape[2] * x.shape[3]).clamp_min(1).to(single)
        # One exchange for both moments. Taken around the running mean, which all workers share, they keep their digits.
        centre_C = self.running_mean.to(x.dtype)  # type: ignore[union-attr]
        moved = x - centre_C[:, None, None]
        counted = moved if groups.real_P is None else moved * groups.real_P.to(x.dtype)[:, None, None, None]
        # In this order: gradients are added in the reverse one, and another changes their last digit.
        sum_C, squares_C = counted.sum((0, 2, 3), dtype=single), (counted * moved).sum((0, 2, 3), dtype=single)
        sums_2C = torch.stack([sum_C, squares_C])
        offset_C, square_C = (groups.collective.sum(sums_2C) / number).unbind()
        var_C = (square_C - offset_C.square()).clamp_min(0)
        with torch.no_grad():
            unbiased_C = var_C * number / (number - 1).clamp_min(1)
            seen_2C = torch.stack([centre_C + offset_C, unbiased_C])
            self.pending[groups.part] = seen_2C * groups.total_calls.to(single)
        scale_C = self.weight * (var_C + self.eps).rsqrt()
        shift_C = self.bias - offset_C * scale_C
        return moved * scale_C.to(x.dtype)[:, None, None] + shift_C.to(x.dtype)[:, None, None]
