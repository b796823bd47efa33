"""Exercise of notebook 00: the tour."""

import torch
from torch import Tensor

from inctrl_lite.checks.engine import Exercise, generator


def effect_of_shots(aurocs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample deviation over seeds for each K: two tensors [n] from AUROCs [n, seeds]."""
    return aurocs.mean(1), aurocs.std(1)


check_effect_of_shots = Exercise(
    solution=effect_of_shots,
    cases=lambda seed: (torch.rand(3 + seed % 2, 5 + seed, generator=generator(seed)),),
    parts=("means", "deviations"),
    mistakes={
        "You average over the values of K. Each row holds the draws of one K, so average along axis "
        "1.": lambda a: (
            a.mean(0),
            a.std(0),
        ),
        "You divide by n, which is right for these draws alone. To speak about all possible draws, divide "
        "by n - 1 (the default of Tensor.std).": lambda a: (a.mean(1), a.std(1, correction=0)),
        "This is the standard error of the mean. The exercise asks how much single draws differ, so do "
        "not divide by the root of n.": lambda a: (a.mean(1), a.std(1) / a.shape[1] ** 0.5),
        "This is the variance: take its square root.": lambda a: (a.mean(1), a.var(1)),
        "Mean and deviation are exchanged: the mean comes first. (torch.std_mean returns the deviation "
        "first.)": (lambda a: (a.std(1), a.mean(1))),
        "You return one row for each K. Two tensors [n] are expected: the means, and the deviations.": (
            lambda a: torch.stack([a.mean(1), a.std(1)], dim=1)
        ),
        "The deviations are missing: return two tensors, `mean, deviation`.": lambda a: a.mean(1),
        "You take the mean and deviation of all numbers together. One of each is expected for every K.": (
            lambda a: (a.mean(), a.std())
        ),
    },
)
