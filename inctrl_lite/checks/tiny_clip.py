"""Exercises of notebook A1: a tiny CLIP from captions."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.checks.engine import Exercise, generator, no_gradient


def _embeddings(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [m, D], captions [m, D] that fit them a little, and which captions are equal [m, m]."""
    g = generator(seed)
    sentence = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 1, 2, 3, 4], [0, 1, 2, 0, 3, 3, 4], [0, 1, 0, 0]][seed])
    m = len(sentence)
    text = torch.randn(m, 3, generator=g, dtype=torch.float64)[sentence]
    image = text + torch.randn(m, 3, generator=g, dtype=torch.float64)
    return image, text, sentence[:, None] == sentence[None]


def _pairs(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    image, text, same_text = _embeddings(seed)
    return image, text, torch.tensor([1.5, 4.0, 3.0, 2.0][seed], dtype=torch.float64), same_text


def _loss_and_gradient(answer, image: Tensor, text: Tensor, scale: Tensor, same_text: Tensor):
    learned = image.clone().requires_grad_(), text.clone().requires_grad_(), scale.clone().requires_grad_()
    loss = answer(*learned, same_text)
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        return loss, None, None, None
    return loss, *torch.autograd.grad(loss.sum(), learned, allow_unused=True)


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, same_text: Tensor) -> Tensor:
    """CLIP's loss of pictures [m, D] and captions [m, D]; same_text [m, m]: equal sentences."""
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    own = torch.eye(len(image), dtype=torch.bool)
    logits = (scale * image @ text.T).masked_fill(same_text & ~own, -torch.inf)
    target = torch.arange(len(image))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _library(image: Tensor, text: Tensor, scale: Tensor, same_text: Tensor) -> Tensor:
    from inctrl_lite.tiny.pretrain import contrastive_loss  # loads open_clip: not before it is needed

    return contrastive_loss(F.normalize(image, dim=-1), F.normalize(text, dim=-1), scale, same_text)


def _logits(image, text, scale, same_text, hidden: float = -torch.inf) -> Tensor:
    """All logits; pairs with the same text are hidden."""
    own = torch.eye(len(image), dtype=torch.bool)
    cosines = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    return (scale * cosines).masked_fill(same_text & ~own, hidden)


def _both(logits: Tensor, target: Tensor | None = None, reduction: str = "mean") -> Tensor:
    target = torch.arange(len(logits)) if target is None else target
    rows = F.cross_entropy(logits, target, reduction=reduction)
    return (rows + F.cross_entropy(logits.T, target, reduction=reduction)) / 2


def _one_way(image, text, scale, same_text) -> Tensor:
    logits = _logits(image, text, scale, same_text)
    return F.cross_entropy(logits, torch.arange(len(logits)))


def _other_way(image, text, scale, same_text) -> Tensor:
    logits = _logits(image, text, scale, same_text)
    return F.cross_entropy(logits.T, torch.arange(len(logits)))


def _not_normalised(image, text, scale, same_text) -> Tensor:
    own = torch.eye(len(image), dtype=torch.bool)
    return _both((scale * image @ text.T).masked_fill(same_text & ~own, -torch.inf))


def _along_the_batch(image, text, scale, same_text) -> Tensor:
    return _not_normalised(F.normalize(image, dim=0), F.normalize(text, dim=0), scale, same_text)


def _own_hidden_too(image, text, scale, same_text) -> Tensor:
    cosines = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    return _both((scale * cosines).masked_fill(same_text, -torch.inf))


def _one_softmax(image, text, scale, same_text) -> Tensor:
    logits = _logits(image, text, scale, same_text)
    return -logits.flatten().log_softmax(0).view_as(logits).diagonal().mean()


def _yes_or_no(image, text, scale, same_text) -> Tensor:
    logits = _logits(image, text, scale, same_text, hidden=-1e4)
    return F.binary_cross_entropy_with_logits(logits, torch.eye(len(logits)).to(logits))


check_contrastive_loss = Exercise(
    solution=contrastive_loss,
    library=_library,
    cases=_pairs,
    run=_loss_and_gradient,
    parts=("loss", "gradient of the pictures", "gradient of the captions", "gradient of the scale"),
    explain=no_gradient("the pictures", "the captions", "the scale"),
    mistakes={
        "The pictures have any length: normalise them along their last axis, like the captions.": (
            lambda i, t, s, same: _not_normalised(i, F.normalize(t, dim=-1), s, same)
        ),
        "The captions have any length: normalise them along their last axis, like the pictures.": (
            lambda i, t, s, same: _not_normalised(F.normalize(i, dim=-1), t, s, same)
        ),
        "The loss is a plain number without a gradient, so nothing can be learned from it. Use tensors "
        "only, without .item(), .detach() or numpy.": lambda i, t, s, same: contrastive_loss(
            i, t, s, same
        ).item(),
        "Only pictures look for their captions. Add the other direction, `logits.T`, and divide by "
        "2.": _one_way,
        "Only captions look for their pictures. Add the other direction, `logits` without .T, and divide "
        "by 2.": (_other_way),
        "You add both directions. Take their mean.": lambda i, t, s, same: (
            2 * contrastive_loss(i, t, s, same)
        ),
        "You add the losses of the batch. Take the mean over the pairs.": lambda i, t, s, same: _both(
            _logits(i, t, s, same), reduction="sum"
        ),
        "The scale is missing. Cosines lie between -1 and 1, which is too close together for a softmax.": (
            lambda i, t, s, same: contrastive_loss(i, t, torch.ones_like(s), same)
        ),
        "The argument is the scale itself, not its logarithm: do not apply .exp().": lambda i, t, s, same: (
            contrastive_loss(i, t, s.exp(), same)
        ),
        "You divide by the scale. The cosines are multiplied by it. (One divides by a temperature, which "
        "is 1 / scale.)": (lambda i, t, s, same: contrastive_loss(i, t, 1 / s, same)),
        "These are dot products, not cosines: normalise pictures and captions along their last axis first.": (
            _not_normalised
        ),
        "You normalise along the batch. Every picture has its own vector, so use dim=-1.": (_along_the_batch),
        "The targets are wrong: caption i belongs to picture i, so they are 0, 1, ..., m - 1.": (
            lambda i, t, s, same: _both(
                _logits(i, t, s, same, hidden=-1e4), torch.zeros(len(i), dtype=torch.long)
            )
        ),
        "Captions with the same text count as wrong. Exclude them with masked_fill, except for each "
        "picture's own caption.": (lambda i, t, s, same: contrastive_loss(i, t, s, torch.zeros_like(same))),
        "You exclude each picture's own caption as well. `same_text` is true on the diagonal, so write `& "
        "~own`.": (_own_hidden_too),
        "A logit of 0 excludes nothing, because it is a cosine of 0. Fill with "
        "-torch.inf.": lambda i, t, s, same: _both(_logits(i, t, s, same, hidden=0.0)),
        "cross_entropy takes logits and applies the softmax itself. Your softmax is one too many.": (
            lambda i, t, s, same: _both(_logits(i, t, s, same).softmax(1))
        ),
        "You apply one softmax to all pairs. Each picture (row) and each caption (column) needs its own "
        "softmax.": (_one_softmax),
        "A yes-or-no decision for every pair is another loss. Here the m captions compete, with one "
        "softmax for each row.": (_yes_or_no),
        "The minus sign is missing: the loss must fall when the right pair becomes more "
        "probable.": lambda i, t, s, same: -contrastive_loss(i, t, s, same),
    },
)


def _similarities(seed: int) -> tuple[Tensor, Tensor]:
    image, text, same_text = _embeddings(seed)
    return F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T, same_text


def retrieval_accuracy(similarity: Tensor, same_text: Tensor) -> tuple[float, float]:
    """Shares of pictures that find a right caption, and of captions that find a right picture."""
    each = torch.arange(len(similarity))
    pictures = same_text[each, similarity.argmax(1)]
    captions = same_text[similarity.argmax(0), each]
    return pictures.float().mean().item(), captions.float().mean().item()


def _shares(picture_right: Tensor, caption_right: Tensor) -> tuple[float, float]:
    return picture_right.float().mean().item(), caption_right.float().mean().item()


def _exact(similarity: Tensor, same_text: Tensor) -> tuple[float, float]:
    each = torch.arange(len(similarity))
    return _shares(similarity.argmax(1) == each, similarity.argmax(0) == each)


def _better_than_average(similarity: Tensor, same_text: Tensor) -> tuple[float, float]:
    own = similarity.diagonal()
    return _shares(own > similarity.mean(1), own > similarity.mean(0))


def _as_often(similarity: Tensor, same_text: Tensor) -> tuple[float, float]:
    a, b = retrieval_accuracy(similarity, same_text)
    return a * len(similarity), b * len(similarity)


def _percent(similarity: Tensor, same_text: Tensor) -> tuple[float, float]:
    a, b = retrieval_accuracy(similarity, same_text)
    return 100 * a, 100 * b


def _wrong_ones(similarity: Tensor, same_text: Tensor) -> tuple[float, float]:
    a, b = retrieval_accuracy(similarity, same_text)
    return 1 - a, 1 - b


check_retrieval_accuracy = Exercise(
    solution=retrieval_accuracy,
    cases=_similarities,
    parts=("pictures", "captions"),
    mistakes={
        "You take the least similar caption. The answer is where the row (or column) is largest.": (
            lambda s, same: retrieval_accuracy(-s, same)
        ),
        "The two numbers are exchanged. A picture is a row and looks along it (argmax(1)).": (
            lambda s, same: retrieval_accuracy(s.T, same)
        ),
        "Both numbers look along the rows. A caption looks down its column: argmax(0).": (
            lambda s, same: (retrieval_accuracy(s, same)[0],) * 2
        ),
        "Both numbers look down the columns. A picture looks along its row: argmax(1).": (
            lambda s, same: (retrieval_accuracy(s, same)[1],) * 2
        ),
        "A caption with the same text as the picture's own caption is right as well. Look the answer up "
        "in `same_text`.": _exact,
        "To be better than the average answer is not enough. The most similar one is the answer.": (
            _better_than_average
        ),
        "A share lies between 0 and 1: divide the count by m.": _as_often,
        "Return a share, not a percentage: no factor of 100.": _percent,
        "This is the share of wrong answers. Count the right ones.": _wrong_ones,
    },
)


# --- the gradient by hand ----------------------------------------------------------------------------


def contrastive_gradient(logits: Tensor, same_text: Tensor) -> tuple[Tensor, float]:
    """Gradient of CLIP's loss by the logits [m, m], and by tau, the logarithm of the scale."""
    own = torch.eye(len(logits), dtype=torch.bool)
    shown = logits.masked_fill(same_text & ~own, -torch.inf)
    gradient = (shown.softmax(1) + shown.softmax(0) - 2 * own.to(logits)) / (2 * len(logits))
    return gradient, (gradient * logits).sum().item()


def _logit_cases(seed: int) -> tuple[Tensor, Tensor]:
    """Logits of the four embedding cases; then very large and very small ones, and one pair alone.

    In the last case, a row lies far below the largest logit: exp(-800) is 0.
    """
    if seed < 4:
        image, text, same_text = _embeddings(seed)
        cosines = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        return (2.0, 5.0, 14.0, 3.0)[seed] * cosines, same_text
    if seed < 6:
        image, text, same_text = _embeddings(seed - 3)
        cosines = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        # exp(900) is infinite; and an excluded logit of -100 would be the largest
        return 900 * cosines if seed == 4 else 300 * cosines - 500, same_text
    if seed == 6:
        return torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[True]])
    image, text, same_text = _embeddings(1)
    cosines = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    rows, columns = [0, 400, -400, 150, 60, -150], [-90, 45, 90, -225, 225, 0]
    return 5 * cosines + torch.tensor(rows)[:, None] + torch.tensor(columns), same_text


def _shown(logits: Tensor, same_text: Tensor, hidden: float = -torch.inf) -> Tensor:
    return logits.masked_fill(same_text & ~torch.eye(len(logits), dtype=torch.bool), hidden)


def _by_hand(
    gradient: Callable[[Tensor, Tensor, int], Tensor],
    tau: Callable[[Tensor, Tensor], Tensor] = lambda g, z: (g * z).sum(),
    hidden: float = -torch.inf,
) -> Callable:
    """A wrong answer: another gradient of (logits with exclusions, diagonal, m), or another derivative."""

    def wrong(logits: Tensor, same_text: Tensor) -> tuple[Tensor, float]:
        found = gradient(_shown(logits, same_text, hidden), torch.eye(len(logits)).to(logits), len(logits))
        return found, float(tau(found, logits))

    return wrong


def _rows_and_columns(z: Tensor, own: Tensor, m: int) -> Tensor:
    return (z.softmax(1) + z.softmax(0) - 2 * own) / (2 * m)


def _all_shown(logits: Tensor, same_text: Tensor) -> tuple[Tensor, float]:
    return contrastive_gradient(logits, torch.zeros_like(same_text))


def _own_hidden(logits: Tensor, same_text: Tensor) -> tuple[Tensor, float]:
    z = logits.masked_fill(same_text, -torch.inf)
    found = _rows_and_columns(z, torch.eye(len(z)).to(z), len(z))
    return found, (found * logits).sum().item()


def _removed_afterwards(logits: Tensor, same_text: Tensor) -> tuple[Tensor, float]:
    found = contrastive_gradient(logits, torch.zeros_like(same_text))[0]
    found = _shown(found, same_text, 0.0)
    return found, (found * logits).sum().item()


def _all_pairs_right(logits: Tensor, same_text: Tensor) -> tuple[Tensor, float]:
    found = _rows_and_columns(logits, same_text.to(logits), len(logits))
    return found, (found * logits).sum().item()


def _without_overflow_care(
    logits: Tensor, same_text: Tensor, given: Tensor | None = None
) -> tuple[Tensor, float]:
    e = _shown(logits, same_text).exp()
    own = torch.eye(len(e)).to(e)
    found = (e / e.sum(1, keepdim=True) + e / e.sum(0, keepdim=True) - 2 * own) / (2 * len(e))
    return found, (found * (logits if given is None else given)).sum().item()


def _times_hidden(logits: Tensor, same_text: Tensor) -> tuple[Tensor, float]:
    found = contrastive_gradient(logits, same_text)[0]
    return found, (found * _shown(logits, same_text)).sum().item()


check_contrastive_gradient = Exercise(
    solution=contrastive_gradient,
    cases=_logit_cases,
    number=8,
    tolerance=1e-4,
    parts=("gradient of the logits", "derivative with respect to tau"),
    forbidden=("backward", "grad", "autograd", "requires_grad_", "requires_grad", "jacrev", "jacobian"),
    mistakes={
        "Only the pictures' softmax (rows) is in your gradient. The loss has a softmax for each caption "
        "(column) as well.": _by_hand(lambda z, own, m: (z.softmax(1) - own) / m),
        "Only the captions' softmax (columns) is in your gradient. The loss has a softmax for each picture "
        "(row) as well.": _by_hand(lambda z, own, m: (z.softmax(0) - own) / m),
        "Only half of the gradient is there: rows without columns. And the factor 1 / (2m) belongs to both "
        "together.": _by_hand(lambda z, own, m: (z.softmax(1) - own) / (2 * m)),
        "Only half of the gradient is there: columns without rows. And the factor 1 / (2m) belongs to both "
        "together.": _by_hand(lambda z, own, m: (z.softmax(0) - own) / (2 * m)),
        "You subtract the largest of ALL logits. In a row or column whose logits are all far below it, every "
        "exponential is 0, and 0 / 0 is nan. Each row and each column needs its own largest logit.": (
            lambda z, same: _without_overflow_care(z - z.max(), same, z)
        ),
        "You add both directions. The loss is their mean, so the factor is 1 / (2m).": _by_hand(
            lambda z, own, m: 2 * _rows_and_columns(z, own, m)
        ),
        "The mean over the m pairs is missing.": _by_hand(lambda z, own, m: m * _rows_and_columns(z, own, m)),
        "The factor of the loss, 1 / (2m), is missing.": _by_hand(
            lambda z, own, m: 2 * m * _rows_and_columns(z, own, m)
        ),
        "You divide by m * m, as if the loss were a mean over all pairs. It is a mean over m pictures and m "
        "captions.": _by_hand(lambda z, own, m: _rows_and_columns(z, own, m) / m),
        "The sign is wrong. The loss falls if the logit of a right pair rises, so its gradient is not "
        "positive.": _by_hand(lambda z, own, m: -_rows_and_columns(z, own, m)),
        "The own pairs are missing. What does the own logit add to the gradient, beside its part in the "
        "denominator?": _by_hand(lambda z, own, m: (z.softmax(1) + z.softmax(0)) / (2 * m)),
        "The own pair is in the loss twice, once as a picture and once as a caption. You count it once.": (
            _by_hand(lambda z, own, m: (z.softmax(1) + z.softmax(0) - own) / (2 * m))
        ),
        "The own pair is subtracted from the whole matrix. It belongs to the diagonal alone.": _by_hand(
            lambda z, own, m: (z.softmax(1) + z.softmax(0) - 2) / (2 * m)
        ),
        "The gradient is right on the diagonal only. Each wrong pair has a gradient as well, because it is "
        "in the denominator of a softmax.": _by_hand(lambda z, own, m: own * _rows_and_columns(z, own, m)),
        "The part of the captions is turned: after `logits.T.softmax(1)` the captions are in the rows. Turn "
        "it back.": _by_hand(lambda z, own, m: (z.softmax(1) + z.T.softmax(1) - 2 * own) / (2 * m)),
        "Your gradient has captions in rows. Pictures are in rows, as in the logits.": lambda z, same: (
            contrastive_gradient(z, same)[0].T,
            contrastive_gradient(z, same)[1],
        ),
        "Captions with the same text count as wrong. Exclude them from both softmaxes.": _all_shown,
        "You exclude each picture's own caption as well. `same_text` is true on the diagonal.": _own_hidden,
        "You set the gradient of excluded pairs to 0, but they are still in the denominators. Exclude them "
        "before the softmax.": _removed_afterwards,
        "You treat captions with the same text as right answers. They are excluded: they are neither right "
        "nor wrong.": _all_pairs_right,
        "A logit of 0 excludes nothing, because e to the power 0 is 1. Use -torch.inf.": _by_hand(
            _rows_and_columns, hidden=0.0
        ),
        "The exponential of a large logit is infinite, and infinity divided by infinity is NaN. Use "
        "`softmax`, or subtract the largest logit of a row first.": _without_overflow_care,
        "0 times an infinite logit is NaN. For tau, use the logits as they were given.": _times_hidden,
        "A yes-or-no decision for every pair (a sigmoid) is another loss. Use a softmax for each row and "
        "each column.": _by_hand(lambda z, own, m: (z.sigmoid() - own) / m),
        "You apply one softmax to all pairs. Each row and each column has its own.": _by_hand(
            lambda z, own, m: z.flatten().softmax(0).view_as(z) - own / m
        ),
        "These are logarithms of probabilities. Which of the two is in the derivative?": _by_hand(
            lambda z, own, m: (z.log_softmax(1) + z.log_softmax(0) - 2 * own) / (2 * m)
        ),
        "The gradient of the logits is right. For tau you add it up, which always gives 0. How much does "
        "each logit change when tau does?": _by_hand(_rows_and_columns, lambda g, z: g.sum()),
        "The gradient of the logits is right. For tau you take the mean over all pairs. Add them up.": (
            _by_hand(_rows_and_columns, lambda g, z: (g * z).mean())
        ),
        "The gradient of the logits is right. For tau only the own pairs count in your answer. All logits "
        "contain the scale.": _by_hand(_rows_and_columns, lambda g, z: (g * z).diagonal().sum()),
        "The gradient of the logits is right, but the sign for tau is wrong.": _by_hand(
            _rows_and_columns, lambda g, z: -(g * z).sum()
        ),
        "You return the gradient alone. Two things are expected: the gradient of the logits and the "
        "derivative with respect to tau.": lambda z, same: contrastive_gradient(z, same)[0],
        "The two results are exchanged: the gradient of the logits comes first.": lambda z, same: (
            contrastive_gradient(z, same)[::-1]
        ),
    },
)
