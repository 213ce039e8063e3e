"""More epochs for a finished run."""

from __future__ import annotations

from pathlib import Path

from trainers.loop.loop import Loop
from trainers.m2can.learning_rates import set_learning_rates


def go_on_from(loop: Loop, checkpoint: Path) -> None:
    """Begin with all of the state of a finished run's last checkpoint, and with this recipe's rates and schedule.

    The schedule is at the step where a run of so many epochs would be. Patience counts anew.

    Raises:
        InputError: the checkpoint is damaged, or of another run's shape.
    """
    settings = [
        [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        for optimizer in loop.step.optimizers
    ]
    loop.load(checkpoint)
    loop.patience.load_state_dict({})
    loop.patience.warmup = max(loop.patience.warmup, loop.epoch)
    loop.step.number = loop.epoch * loop.steps_per_epoch  # another one if the batch size is another
    for optimizer, groups in zip(loop.step.optimizers, settings, strict=True):
        for group, wanted in zip(optimizer.param_groups, groups, strict=True):
            group.update(wanted)  # the recipe's, in the place of the checkpoint's
        set_learning_rates(optimizer, loop.step.schedule, loop.step.number - 1)
