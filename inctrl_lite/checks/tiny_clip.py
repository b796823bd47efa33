"""Exercises of notebook A1: a tiny CLIP from captions."""

import torch
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.checks.engine import Exercise, generator


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
    image = image.clone().requires_grad_()
    loss = answer(image, text, scale, same_text)
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        return loss, None
    return loss, torch.autograd.grad(loss.sum(), image)[0]


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
    parts=("loss", "gradient of the pictures"),
    mistakes={
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
