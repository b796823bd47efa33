"""A training run on disk: checkpoints, history, going on after an interruption. The loop is in `training`."""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from inctrl_lite.device import ProcessGroup
from inctrl_lite.errors import InctrlError
from inctrl_lite.files import write_text, write_whole

CHECKPOINT, HISTORY = "checkpoint.pt", "history.jsonl"
Record = dict[str, int | float]


class TrainingRun:
    """The steps of a training, some of which may have been taken by an earlier process.

    Used as a context manager, it holds back Ctrl-C until the step is finished::

        with TrainingRun(...) as run:
            for step in run.steps():
                ...
                run.check(step, loss, norm)
                optimiser.step()
                run.record(step, loss=loss, gradient=norm)

    Args:
        model, optimiser: what is trained; both are put back to where an earlier process stopped.
        settings: all that the outcome depends on, but for the number of steps.
        total: number of steps.
        every: a checkpoint is written after so many steps.
        out: folder of the checkpoints; None keeps nothing.
        processes: who takes part; rank 0 writes and prints.
        resume: go on with what is in `out`; False starts over.
        progress: show a progress bar.

    Raises:
        InctrlError: `out` holds another run, a damaged checkpoint, or cannot be written.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        settings: dict[str, Any],
        *,
        total: int,
        every: int,
        out: Path | None,
        processes: ProcessGroup,
        resume: bool = True,
        progress: bool = True,
    ):
        self.model, self.optimiser, self.settings = model, optimiser, settings
        self.total, self.every, self.out, self.processes = total, every, out, processes
        self.show_progress = progress and processes.is_main
        self.history: list[Record] = []
        self._stack, self._interrupted, self._began = ExitStack(), lambda: False, 0.0
        if out is not None and resume and (out / CHECKPOINT).exists():
            self.history += load_checkpoint(out, settings, total, model, optimiser)
        else:
            self.save()  # learn now, not after an epoch, whether the folder can be written
        processes.wait()

    def __enter__(self) -> TrainingRun:
        self._interrupted = self._stack.enter_context(deferred_interrupt())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def steps(self) -> Iterator[int]:
        """Numbers of the steps that are still to be taken."""
        self._bar = tqdm(
            range(len(self.history), self.total),
            initial=len(self.history),
            total=self.total,
            desc="training",
            unit="step",
            disable=not self.show_progress,
        )
        self._stack.enter_context(self._bar)
        for step in self._bar:
            self._began = time.perf_counter()
            yield step

    def check(self, step: int, loss: float, norm: float) -> None:
        """Stop before a step that would destroy the weights.

        Raises:
            InctrlError: the loss or its gradient is no number.
        """
        if math.isfinite(loss + norm):
            return
        kept = "" if self.out is None else f" The last good checkpoint is in {self.out}."
        raise InctrlError(
            f"training failed at step {step}: the loss is {loss} and its gradient's norm {norm}.{kept} Try a "
            f"learning rate below {self.optimiser.param_groups[0]['lr']:g}, in another folder"
        )

    def record(self, step: int, **values: float) -> None:
        """Note a finished step; write a checkpoint when it is time or when somebody pressed Ctrl-C.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed in one of the processes; a checkpoint is written.
        """
        seconds = time.perf_counter() - self._began
        rate = self.optimiser.param_groups[0]["lr"]
        self.history.append({"step": step, **values, "lr": rate, "seconds": seconds})
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
        # all processes stop together or none does
        stop = self.processes.mean(torch.tensor(float(self._interrupted()), device=self.processes.device))
        if stop or (step + 1) % self.every == 0:
            self.save()
        if stop:
            message = f"interrupted after {step + 1} of {self.total} steps"
            if self.out is not None:
                message += f". Saved in {self.out}; the same command or call goes on from there"
            if self.processes.is_main:
                tqdm.write(message, file=sys.stderr)
            raise KeyboardInterrupt(message)

    def save(self) -> None:
        """Write a checkpoint, if there is a folder for it."""
        if self.out is not None and self.processes.is_main:
            save_checkpoint(self.out, self.settings, self.model, self.optimiser, self.history)


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C, which could strike in the middle of an update; gives a function that tells of it.

    A second Ctrl-C acts at once. Only the main thread may do this: elsewhere nothing is held back.
    """
    asked = False

    def ask(signum: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)


def save_checkpoint(
    out: Path,
    settings: dict[str, Any],
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    history: list[Record],
) -> None:
    """Write all that going on needs, in one file, whole; and the history for people to read.

    Raises:
        InctrlError: weights are no numbers any more, or the folder cannot be written.
    """
    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        raise InctrlError(f"training failed after {len(history)} steps: weights are no numbers any more")
    state = {
        "run": settings,
        "history": history,
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    buffer = BytesIO()
    torch.save(state, buffer)
    write_whole(out / CHECKPOINT, lambda temporary: temporary.write_bytes(buffer.getvalue()))
    write_text(out / HISTORY, "".join(json.dumps(record) + "\n" for record in history))


def load_checkpoint(
    out: Path, settings: dict[str, Any], steps: int, model: nn.Module, optimiser: torch.optim.Optimizer
) -> list[Record]:
    """Put model and optimiser back where they were; returns the history.

    Raises:
        InctrlError: the file cannot be read, or is of a run with other settings (named).
    """
    path = out / CHECKPOINT
    advice = "Delete it, or start over with resume=False"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved, history = state["run"], state["history"]
    except Exception as error:  # unpickling and zip errors of many kinds
        raise InctrlError(
            f"{path} cannot be read ({type(error).__name__}): it is damaged, or no checkpoint of this "
            f"package. {advice}"
        ) from error
    if not history:  # nothing is lost by starting over, perhaps with better settings
        return []
    changed = [
        f"{key} {saved.get(key)!r}, now {settings[key]!r}"
        for key in settings
        if saved.get(key) != settings[key]
    ]
    if changed:
        raise InctrlError(
            f"{out} holds a run with other settings ({'; '.join(changed)}). Choose another folder or the "
            f"same settings, or delete {path} to start over (resume=False)"
        )
    if len(history) > steps:
        raise InctrlError(
            f"{out} holds a run of {len(history)} steps already, more than the {steps} asked for. Choose "
            "another folder, or more epochs"
        )
    try:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    except Exception as error:  # missing entries, other shapes
        raise InctrlError(
            f"{path} does not fit this model ({' '.join(str(error).split())[:200]}). {advice}"
        ) from error
    return history
