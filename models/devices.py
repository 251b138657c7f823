"""Which of torch's devices a model runs on."""

from __future__ import annotations

import torch

from quantmill.models.errors import ModelError
from quantmill.qkernels.drivers import torch_devices


def automatic_device() -> str:
    """Where a model runs unless told otherwise: on CUDA, else on Apple's GPU, else on the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def usable_device(name: str) -> torch.device:
    """torch's device of this name, or what "auto" means here. Raises ModelError when it cannot be used."""
    try:
        device = torch.device(automatic_device() if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # of an operator that a build lacks torch says much more, about other builds
        reason = str(error).splitlines()[0].partition(". ")[0]
        found = ", ".join([*torch_devices(), "cpu"])
        raise ModelError(f"device {name!r} is not available ({reason}); torch finds {found}") from error
    return device
