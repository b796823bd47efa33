"""Exercise of notebook 00: the tour."""

import torch
from torch import Tensor

from inctrl_lite.checks.engine import Exercise, generator


def effect_of_shots(aurocs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample deviation over seeds, for each K: two tensors [n] from AUROCs [n, seeds]."""
    return aurocs.mean(1), aurocs.std(1)


check_effect_of_shots = Exercise(
    solution=effect_of_shots,
    cases=lambda seed: (torch.rand(3 + seed % 2, 5 + seed, generator=generator(seed)),),
    mistakes={
        "you average over the values of K: a row is one K, average along axis 1, the seeds": lambda a: (
            a.mean(0),
            a.std(0),
        ),
        "this is the deviation of these seeds alone; to speak about other seeds divide by n - 1 "
        "(torch's default)": lambda a: (a.mean(1), a.std(1, correction=0)),
        "this is the error of the mean; asked is how far single draws lie apart: no division by the root "
        "of n": lambda a: (a.mean(1), a.std(1) / a.shape[1] ** 0.5),
        "this is the variance: take its square root": lambda a: (a.mean(1), a.var(1)),
        "the two have changed places: the mean comes first (torch.std_mean gives the deviation first)": (
            lambda a: (a.std(1), a.mean(1))
        ),
        "each row is one K's mean and deviation: asked are two tensors [n], means and deviations": (
            lambda a: torch.stack([a.mean(1), a.std(1)], dim=1)
        ),
        "the deviations are missing: return two tensors, `mean, deviation`": lambda a: a.mean(1),
        "these are the mean and deviation of all numbers at once: asked is one of each for every K": (
            lambda a: (a.mean(), a.std())
        ),
    },
)
