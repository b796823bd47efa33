"""Exercises of notebook 07: training."""

import io
import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inctrl_lite.checks.engine import Exercise, generator, no_gradient, same
from inctrl_lite.losses import focal_loss as library_focal_loss


def _scores(seed: int) -> tuple[Tensor, Tensor, float]:
    g = generator(seed)
    scores = 0.05 + 0.9 * torch.rand(5 + seed, generator=g)
    labels = (torch.arange(5 + seed) % 3 == 0).float()
    return scores, labels, (2.0, 0.0, 1.0, 3.5)[seed]


def _loss_and_gradient(answer, scores: Tensor, labels: Tensor, gamma: float):
    scores = scores.clone().requires_grad_()
    loss = answer(scores, labels, gamma)
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        return loss, None
    return loss, torch.autograd.grad(loss.sum(), scores, allow_unused=True)[0]


def focal_loss(scores: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean focal loss of scores [B] in (0, 1) against labels [B], 1 = anomalous."""
    p_of_truth = scores * labels + (1 - scores) * (1 - labels)
    return (-((1 - p_of_truth) ** gamma) * p_of_truth.log()).mean()


def _of_each(scores: Tensor, labels: Tensor, gamma: float) -> Tensor:
    p = scores * labels + (1 - scores) * (1 - labels)
    return -((1 - p) ** gamma) * p.log()


def _weighted_by_the_right(scores: Tensor, labels: Tensor, gamma: float) -> Tensor:
    p = scores * labels + (1 - scores) * (1 - labels)
    return (-(p**gamma) * p.log()).mean()


def _of_the_mean(scores: Tensor, labels: Tensor, gamma: float) -> Tensor:
    cross_entropy = F.binary_cross_entropy(scores, labels)
    return (1 - (-cross_entropy).exp()) ** gamma * cross_entropy


def _weight_detached(scores: Tensor, labels: Tensor, gamma: float) -> Tensor:
    p = scores * labels + (1 - scores) * (1 - labels)
    return (-((1 - p.detach()) ** gamma) * p.log()).mean()


check_focal_loss = Exercise(
    solution=focal_loss,
    library=partial(library_focal_loss, double_sigmoid=False),
    cases=_scores,
    run=_loss_and_gradient,
    parts=("loss", "gradient of the scores"),
    explain=no_gradient("the scores"),
    mistakes={
        "The loss is a plain number without a gradient, so nothing can be learned from it. Use tensors "
        "only, without .item(), .detach() or numpy.": lambda s, y, gamma: focal_loss(s, y, gamma).item(),
        "The value is right, but its gradient is wrong. The weight (1 - p_t) ** gamma depends on the "
        "scores as well, so do not detach it.": _weight_detached,
        "You return one loss for each image: take their mean.": _of_each,
        "You add the losses of the batch. Take the mean; otherwise the step grows with the batch size.": (
            lambda s, y, gamma: _of_each(s, y, gamma).sum()
        ),
        "You treat normal images like anomalous ones. For label 0 the truth has the probability 1 - score.": (
            lambda s, y, gamma: focal_loss(s, torch.ones_like(y), gamma)
        ),
        "The labels are exchanged: 1 is anomalous, and a score is the probability of anomalous.": (
            lambda s, y, gamma: focal_loss(s, 1 - y, gamma)
        ),
        "The weight favours images that are right already. It is (1 - p_t) ** gamma.": _weighted_by_the_right,
        "A loss is large for mistakes: the minus sign before the logarithm is missing.": (
            lambda s, y, gamma: -focal_loss(s, y, gamma)
        ),
        "You compute one weight for the whole batch from its mean cross-entropy. Each image "
        "has its own weight, so take the mean last (reduction='none' keeps the images "
        "apart).": _of_the_mean,
        "gamma changes nothing: this is plain cross-entropy, and the weight is missing.": (
            lambda s, y, gamma: focal_loss(s, y, 0.0)
        ),
        "gamma is always 2: use the argument.": lambda s, y, gamma: focal_loss(s, y, 2.0),
        "These scores are probabilities already, so no sigmoid belongs here. (You have built the double "
        "sigmoid, which comes next.)": lambda s, y, gamma: focal_loss(s.sigmoid(), y, gamma),
    },
)


def loss_range(label: int, gamma: float) -> tuple[float, float]:
    """Smallest and largest focal loss of one image whose score takes a second sigmoid."""
    p = torch.sigmoid(torch.tensor([0.0, 1.0]))
    p_of_truth = p if label == 1 else 1 - p
    losses = -((1 - p_of_truth) ** gamma) * p_of_truth.log()
    return losses.min().item(), losses.max().item()


def _without_weight(label: int, gamma: float) -> tuple[float, float]:
    return loss_range(label, 0.0)


check_loss_range = Exercise(
    solution=loss_range,
    cases=lambda seed: (seed % 2, (2.0, 2.0, 0.0, 3.5)[seed]),
    parts=("smallest loss", "largest loss"),
    mistakes={
        "This is the range without a second sigmoid. Pass the two ends 0 and 1 through it first.": (
            lambda label, gamma: (0.0, math.inf)
        ),
        "Return the smallest loss first. Which end is worse depends on the label.": lambda label, gamma: (
            loss_range(label, gamma)[::-1]
        ),
        "Both labels have the same range in your answer. For label 0 the probability of the truth is 1 - "
        "p.": (lambda label, gamma: loss_range(1, gamma)),
        "The labels are exchanged: 1 is anomalous.": lambda label, gamma: loss_range(1 - label, gamma),
        "This is cross-entropy: the weight (1 - p_t) ** gamma is missing.": _without_weight,
        "gamma is always 2: use the argument.": lambda label, gamma: loss_range(label, 2.0),
        "The smallest and the largest loss of both kinds together are not asked for. Each label has its own "
        "range.": lambda label, gamma: (loss_range(0, gamma)[0], loss_range(0, gamma)[1]),
        "Return the smallest loss first. You return the loss at score 0 and then the loss at score 1, and "
        "for label 1 the first one is larger.": lambda label, gamma: loss_range(label, gamma)[
            :: -1 if label else 1
        ],
        "You treat a score of 1 as perfect and a score of 0 as worst. For a normal image it is the "
        "opposite.": lambda label, gamma: (
            loss_range(label, gamma) if label else loss_range(label, gamma)[::-1]
        ),
    },
)


def _pair_scores(seed: int) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    return 2 * torch.randn(4 + seed, generator=g), 1 + 2 * torch.randn(4 + seed, generator=g)


def _loss_and_gradients(answer, normal: Tensor, anomalous: Tensor):
    scores = normal.clone().requires_grad_(), anomalous.clone().requires_grad_()
    loss = answer(*scores)
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        return loss, None, None
    return loss, *torch.autograd.grad(loss.sum(), scores, allow_unused=True)


def pair_loss(normal: Tensor, anomalous: Tensor) -> Tensor:
    """Mean over P pairs: -log of the probability that the anomalous score is larger."""
    return -(anomalous - normal).sigmoid().log().mean()


check_pair_loss = Exercise(
    solution=pair_loss,
    cases=_pair_scores,
    run=_loss_and_gradients,
    parts=("loss", "gradient of the normal scores", "gradient of the anomalous scores"),
    explain=no_gradient("the normal scores", "the anomalous scores"),
    mistakes={
        "The scores can be any real numbers, and the sigmoid belongs to their difference alone. You apply "
        "one to each score first.": lambda n, a: pair_loss(n.sigmoid(), a.sigmoid()),
        "You take the mean before the logarithm. Each pair has its own logarithm; the mean comes last.": (
            lambda n, a: -(a - n).sigmoid().mean().log()
        ),
        "You take the mean of the differences first. Each pair has its own sigmoid and logarithm; the mean "
        "comes last.": lambda n, a: -(a - n).mean().sigmoid().log(),
        "The logarithm is missing.": lambda n, a: -(a - n).sigmoid().mean(),
        "The sigmoid is missing: a difference is no probability.": lambda n, a: (n - a).mean(),
        "The pairs are the wrong way around: the *anomalous* image is to have the larger score.": (
            lambda n, a: pair_loss(a, n)
        ),
        "You return one loss for each pair: take their mean.": (lambda n, a: F.softplus(n - a)),
        "You add the losses of the pairs: take their mean.": lambda n, a: F.softplus(n - a).sum(),
        "A loss is large for mistakes: the minus sign before the logarithm is missing.": (
            lambda n, a: -pair_loss(n, a)
        ),
        "You compare every normal image with every anomalous one. They are of different categories; compare "
        "each with its partner only.": lambda n, a: F.softplus(n[:, None] - a[None]).mean(),
        "You judge every image by itself, as the focal loss does. Only the difference of the two scores is "
        "to count.": lambda n, a: (F.softplus(n) + F.softplus(-a)).mean(),
        "You count the pairs in the wrong order. That is one minus the AUROC of the pairs, but its gradient "
        "is zero: use the sigmoid of the difference.": lambda n, a: (n >= a).float().mean(),
        "This is the mean probability of the wrong order. Take the logarithm of the right one's, and change "
        "the sign.": lambda n, a: (n - a).sigmoid().mean(),
    },
)


# --- harder: stop and continue -----------------------------------------------------------------------


def train_on(model, optimiser, generator, step, steps: int, state: dict | None = None) -> dict:
    """Take `steps` steps, from `state` if it is given; returns the state from which to continue."""
    from copy import deepcopy

    if state is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(deepcopy(state["optimiser"]))  # it would keep the tensors
        generator.set_state(state["generator"])
        torch.set_rng_state(state["global"])
    for _ in range(steps):
        step(model, optimiser, generator)
    found = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    return deepcopy(found) | {"generator": generator.get_state(), "global": torch.get_rng_state()}


def _fresh(kind: int, seed: int) -> tuple:
    """What a newly started program has: a model, an optimiser and a generator of its own."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(5, 6 + kind), nn.BatchNorm1d(6 + kind), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6 + kind, 1)
    )
    optimiser: torch.optim.Optimizer
    if kind % 2:
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    else:
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.05)
    return model, optimiser, torch.Generator().manual_seed(seed)


def _one_step(model: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
    """A training step on a random batch, with Dropout and a learning rate that falls."""
    x = torch.randn(8, 5, generator=generator)
    loss = (model(x)[:, 0] - x.sum(1)).square().mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    for group in optimiser.param_groups:
        group["lr"] *= 0.9


def _through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _all_of(model: nn.Module) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in model.state_dict().values()])


TRAININGS = {
    "in one go": "without a state, `steps` steps should give what a plain loop over `step` gives",
    "continued": "3 steps, then 4 in a new program from the state (which went through a file) should give "
    "exactly what 7 steps give",
    "continued later": "3 steps, a state, 2 more steps of the same model, then 4 from that state should give "
    "exactly what 7 steps give: later steps must not change a state",
    "twice from one state": "two trainings from the same state should give exactly the same",
    "stopped twice": "3 + 2 + 2 steps, with two stops, should give exactly what 7 steps give",
    "no steps": "0 steps from a state should give back its model, and 0 steps more the same state",
}


def _trainings(answer: Callable, kind: int) -> dict[str, Tensor]:
    """Weights after several ways to take the same steps."""
    with torch.random.fork_rng(devices=[]):
        one = _fresh(kind, 1)
        answer(*one, _one_step, 7)
        found = {"in one go": _all_of(one[0])}

        first = _fresh(kind, 1)
        kept = _through_a_file(answer(*first, _one_step, 3))
        other = _fresh(kind, 2)
        answer(*other, _one_step, 4, kept)
        found["continued"] = _all_of(other[0])

        first = _fresh(kind, 1)
        state = answer(*first, _one_step, 3)
        answer(*first, _one_step, 2)
        other = _fresh(kind, 3)
        answer(*other, _one_step, 4, state)
        found["continued later"] = _all_of(other[0])
        other = _fresh(kind, 4)
        answer(*other, _one_step, 4, state)
        found["twice from one state"] = _all_of(other[0])

        second, third = _fresh(kind, 5), _fresh(kind, 6)
        later = _through_a_file(answer(*second, _one_step, 2, kept))
        answer(*third, _one_step, 2, later)
        found["stopped twice"] = _all_of(third[0])

        fourth, fifth = _fresh(kind, 7), _fresh(kind, 8)
        again = answer(*fourth, _one_step, 0, kept)
        restored = _all_of(fourth[0])
        answer(*fifth, _one_step, 1, again)
        found["no steps"] = torch.cat([restored, _all_of(fifth[0])])
    return found


def _in_words(case: tuple, result: dict, right: dict) -> str | None:
    for name, told in TRAININGS.items():
        if not same(result[name], right[name], 0.0):
            return told
    return None


def _training(
    keep: Callable[[dict], dict] = lambda state: state,
    load: Callable[[dict, nn.Module, torch.optim.Optimizer], dict] = lambda state, model, optimiser: state,
    more: Callable[[int, dict | None], int] = lambda steps, state: steps,
    without: str = "",
    shared: bool = False,
) -> Callable:
    """A training that keeps or loads something else, or without a part of the state."""

    def wrong(model, optimiser, generator, step, steps, state=None):
        if state is not None:
            state = load(state, model, optimiser)
            model.load_state_dict(state["model"], strict=False)
            if without != "optimiser":
                averages = state["optimiser"]
                optimiser.load_state_dict(averages if shared else deepcopy(averages))
            if without != "generator":
                generator.set_state(state["generator"])
            if without != "global":
                torch.set_rng_state(state["global"])
        for _ in range(more(steps, state)):
            step(model, optimiser, generator)
        done = steps + (state["done"] if state else 0)
        parts = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "done": done}
        return keep(parts | {"generator": generator.get_state(), "global": torch.get_rng_state()})

    return wrong


def _without_buffers(state: dict) -> dict:
    weights = {name: one for name, one in state["model"].items() if name.endswith(("weight", "bias"))}
    return deepcopy(state | {"model": weights})


def _fresh_groups(state: dict, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict:
    groups = optimiser.state_dict()["param_groups"]
    return state | {"optimiser": {"state": state["optimiser"]["state"], "param_groups": groups}}


def _state_before(model, optimiser, generator, step, steps, state=None):
    kept = train_on(model, optimiser, generator, step, 0, state)
    train_on(model, optimiser, generator, step, steps)
    return kept


def _loaded_afterwards(model, optimiser, generator, step, steps, state=None):
    kept = train_on(model, optimiser, generator, step, steps)
    return kept if state is None else train_on(model, optimiser, generator, step, 0, state)


def _seeded_again(model, optimiser, generator, step, steps, state=None):
    if state is not None:
        state = state | {"generator": torch.Generator().manual_seed(state["seed"]).get_state()}
    kept = train_on(model, optimiser, generator, step, steps, state)
    return kept | {"seed": state["seed"] if state else generator.initial_seed()}


def _global_seed(model, optimiser, generator, step, steps, state=None):
    if state is not None:
        state = state | {"global": torch.Generator().manual_seed(0).get_state()}
    return train_on(model, optimiser, generator, step, steps, state)


check_train_on = Exercise(
    solution=train_on,
    cases=lambda seed: (seed,),
    run=_trainings,
    tolerance=0.0,
    number=2,
    inputs=lambda kind: (
        f"a small model with BatchNorm and Dropout, and {('AdamW', 'SGD with momentum')[kind]}"
    ),
    explain=_in_words,
    mistakes={
        "The optimiser's state is not restored. It has averages of earlier gradients.": _training(
            keep=deepcopy, without="optimiser"
        ),
        "The state of `generator` is not restored, so other batches are drawn.": _training(
            keep=deepcopy, without="generator"
        ),
        "The state of PyTorch's global generator is not restored. Dropout draws from it.": _training(
            keep=deepcopy, without="global"
        ),
        "Neither generator is restored: `generator` draws batches, PyTorch's global one serves Dropout.": (
            lambda model, optimiser, generator, step, steps, state=None: train_on(
                model,
                optimiser,
                generator,
                step,
                steps,
                state and state | {"generator": generator.get_state(), "global": torch.get_rng_state()},
            )
        ),
        "You keep the parameters alone. BatchNorm also has running averages, which are buffers.": _training(
            keep=_without_buffers
        ),
        "Nothing is copied. state_dict() refers to the tensors of the model and the optimiser, and the next "
        "step changes them in place.": _training(),
        "A copy of the dictionary still refers to the same tensors. Copy the tensors as well.": _training(
            keep=lambda state: (
                {name: dict(part) if isinstance(part, dict) else part for name, part in state.items()}
                | {"optimiser": deepcopy(state["optimiser"])}
            )
        ),
        "The state that you load is changed by the next step: an optimiser's load_state_dict keeps the very "
        "tensors that it gets. Give it a copy.": _training(keep=deepcopy, shared=True),
        "The model is copied, but the optimiser's tensors are not.": _training(
            keep=lambda state: state | {"model": deepcopy(state["model"])}
        ),
        "The optimiser's averages are restored, its settings are not: the learning rate has changed.": (
            _training(keep=deepcopy, load=_fresh_groups)
        ),
        "You return the state from before the steps.": _state_before,
        "You restore the state after the steps. Restore it first.": _loaded_afterwards,
        "The state is not used.": lambda model, optimiser, generator, step, steps, state=None: train_on(
            model, optimiser, generator, step, steps
        ),
        "`steps` counts the steps of this call, and you count those from the beginning.": _training(
            keep=deepcopy, more=lambda steps, state: steps - (state["done"] if state else 0)
        ),
        "There is one step too few.": lambda model, optimiser, generator, step, steps, state=None: train_on(
            model, optimiser, generator, step, max(0, steps - 1), state
        ),
        "A seed is not a state: seeded again, `generator` draws the first batches once more.": _seeded_again,
        "You seed PyTorch's global generator. Its state moves on with every draw, so keep the state.": (
            _global_seed
        ),
    },
)
