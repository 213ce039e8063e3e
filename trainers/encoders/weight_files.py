"""Files of weights. What a run does not train is written once into its folder; its checkpoints name that file and its hash.

<run>/frozen.safetensors             the network's frozen parameters
<run>/checkpoint_*/model/
    model.safetensors                all other weights of the network
    frozen.json                      name, size and SHA-256 of the file above; absent where nothing is frozen
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datasets_manifest.errors import InputError
from datasets_manifest.files import digest, read_json, whole_file

WEIGHTS, FROZEN, REFERENCE = "model.safetensors", "frozen.safetensors", "frozen.json"


class FrozenWeights:
    """The parameters of a network that take no gradient.

    tensors: by their names in the network's state dict.
    """

    def __init__(self, network: nn.Module) -> None:
        parameters = network.named_parameters(remove_duplicate=False)
        self.tensors = {name: p.detach() for name, p in parameters if not p.requires_grad}
        self._reference: dict[str, Any] | None = None  # once the file is known to hold these tensors

    def write(self, run: Path) -> dict[str, Any] | None:
        """Write the file into a run's folder unless it is there; what a checkpoint's frozen.json holds. None: nothing is frozen.

        Raises:
            OSError: disk full or not writable.
        """
        if not self.tensors:
            return None
        if self._reference is None or not (run / FROZEN).is_file():
            # Tied parameters share memory, which the file format refuses.
            apart = {name: x.clone() if x.device.type == "cpu" else x for name, x in self.tensors.items()}
            with whole_file(run / FROZEN, size=sum(x.nbytes for x in apart.values())) as draft:
                save_tensors(draft, apart)
                self._reference = {"file": FROZEN, **digest(draft)}
        return self._reference

    def were_loaded(self, folder: Path) -> None:
        """The tensors are those that the model in `folder` names."""
        if (folder / REFERENCE).is_file():
            self._reference = read_json(folder / REFERENCE)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of the model in `folder`, the frozen ones too.

    Raises:
        InputError: a file is missing or damaged.
    """
    weights = read_tensors(folder / WEIGHTS)
    if (folder / REFERENCE).is_file():
        weights |= read_tensors(_verified_frozen_file(folder))
    return weights


def _verified_frozen_file(folder: Path) -> Path:
    """Where the frozen weights lie of the model in a checkpoint's folder `model`."""
    wanted = read_json(folder / REFERENCE)
    file = folder.resolve().parent.parent / Path(str(wanted.get("file"))).name
    if not file.is_file():
        whole = "the checkpoint inside its run's folder; `m2can models fetch` gives a model that is complete in itself"
        raise InputError("the frozen weights of this checkpoint are missing", file=file, wanted=whole)
    found = {"file": wanted.get("file"), **digest(file)}
    if found != wanted:
        raise InputError("is truncated or altered", file=file, value=found, wanted=str(wanted))
    return file


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Raises InputError: missing or damaged."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot be read ({error})", file=file) from None


def save_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Raises OSError: disk full or not writable."""
    file.touch()
    mode = file.stat().st_mode
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(f"{file}: {error}") from error
    with contextlib.suppress(PermissionError):  # a file system without modes
        file.chmod(mode)  # safetensors leaves it readable for its owner alone
