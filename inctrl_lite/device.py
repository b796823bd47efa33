"""Where work is done: on which device, and by how many processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inctrl_lite.errors import InctrlError


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device to use: "auto" is CUDA if there is one, else Apple's MPS, else the CPU.

    Raises:
        InctrlError: no such device here, or one that cannot hold numbers ("meta").
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch built without CUDA asserts
        cause = str(error).splitlines()[0]
        raise InctrlError(
            f"device {str(device)!r} cannot be used here ({cause}). Try 'auto' or 'cpu'"
        ) from error
    return device


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that share a job, as one of them sees it. Made by `process_group`.

    Attributes:
        rank: number of this process, from 0. Rank 0 writes files and prints.
        size: how many there are.
        device: this process's own.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all processes have come this far."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def mean(self, tensor: Tensor) -> Tensor:
        """`tensor` averaged over the processes, the same in all of them."""
        if self.size == 1:
            return tensor
        from accelerate.utils import reduce

        return reduce(tensor, "mean")

    def average_gradients(self, model: nn.Module) -> None:
        """Give every process the gradient of the whole batch, from those of its equal shares."""
        if self.size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        averaged = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, averaged.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, by rank, in all of them."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])


def process_group(device: str | torch.device = "auto") -> ProcessGroup:
    """The processes that were started together with this one, or a group of one.

    Several are started by `accelerate launch -m inctrl_lite ...` or, in a notebook, by
    `accelerate.notebook_launcher`; each then gets a device of its own. "cpu" keeps all of them on the CPU.
    Without GPUs `accelerate launch` starts a single process unless MPI is there; `torchrun
    --nproc-per-node 2 -m inctrl_lite ...` starts as many as asked.

    Raises:
        InctrlError: no such device here.
    """
    # A single process leaves accelerate's state untouched: processes that a notebook forks later inherit it.
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ProcessGroup(0, 1, pick_device(device))
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or pick_device(device).type == "cpu"
    state = PartialState(cpu=on_cpu)
    return ProcessGroup(state.process_index, state.num_processes, state.device)
