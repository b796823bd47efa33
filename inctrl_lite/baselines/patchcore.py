"""PatchCore: distance to a memory bank of locally averaged patch tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.baselines.base import Answer, Images

NEIGHBOURS = 9  # b of the re-weighting; the paper leaves it open, its code takes 9 at most


class PatchCore:
    """Distance of the worst patch to its nearest memory, weighted up where that memory is lonely itself.

    Differences: tokens of the shared backbone's first two tapped blocks instead of a ResNet's; with a few
    images the bank is small, so a coreset is taken only above `bank_size` patches.
    """

    name = "PatchCore"
    source = "Roth et al., CVPR 2022, with the image score of its Eq. 6 and 7"
    training_free = True
    bank_size = 2000

    def fit(self, normals: Images, category: str) -> PatchCore:
        tokens = local_tokens(normals.features.patches[:, :2], normals.backbone.grid).flatten(0, 1)
        self.bank = tokens[coreset(tokens, self.bank_size)] if len(tokens) > self.bank_size else tokens
        return self

    def score(self, queries: Images) -> Answer:
        tokens = local_tokens(queries.features.patches[:, :2], queries.backbone.grid)
        half = self.bank.square().sum(1) / 2
        # image by image, since the matrix is large; the root of its minima alone, which is faster than cdist
        found = [torch.addmm(half, one, self.bank.T, alpha=-1).min(1) for one in tokens]
        nearest = torch.stack([one.indices for one in found])
        squares = 2 * torch.stack([one.values for one in found]) + tokens.square().sum(2)
        maps = squares.clamp_min(0).sqrt()
        worst = maps.argmax(1)
        image = torch.arange(len(maps))
        memory = self.bank[nearest[image, worst]]
        among = torch.cdist(memory, self.bank).topk(min(NEIGHBOURS, len(self.bank)), largest=False)
        around = self.bank[among.indices]  # [B, b, C]
        to_all = torch.linalg.vector_norm(around - tokens[image, worst][:, None], dim=-1)
        largest = maps[image, worst]
        weight = 1 - torch.exp(largest - torch.logsumexp(to_all, 1))
        return Answer(weight * largest, maps)


def local_tokens(
    patches: Float[Tensor, "B L N C"], grid: tuple[int, int], width: int = 3
) -> Float[Tensor, "B N D"]:
    """Tokens averaged over their neighbourhood, blocks side by side (D = L C)."""
    images, blocks, _, channels = patches.shape
    maps = patches.transpose(-1, -2).reshape(images * blocks, channels, *grid)
    pooled = F.avg_pool2d(maps, width, stride=1, padding=width // 2, count_include_pad=False)
    return pooled.reshape(images, blocks * channels, -1).transpose(1, 2)


def coreset(tokens: Float[Tensor, "n C"], size: int) -> Int[Tensor, " m"]:
    """Greedy farthest-point choice: each next token is the one farthest from all chosen ones.

    >>> coreset(torch.tensor([[0.0], [0.1], [5.0], [9.0]]), 3).tolist()
    [0, 3, 2]
    """
    chosen = [0]
    distance = torch.linalg.vector_norm(tokens - tokens[0], dim=-1)
    for _ in range(min(size, len(tokens)) - 1):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, torch.linalg.vector_norm(tokens - tokens[chosen[-1]], dim=-1))
    return torch.tensor(chosen)
