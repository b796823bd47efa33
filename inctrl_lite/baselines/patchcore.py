"""PatchCore: distance to a memory bank of locally averaged patch tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inctrl_lite.baselines.base import Answer, Images, Method


class PatchCore(Method):
    """Distance of the worst patch to its nearest bank entry; more where that entry is far from all others.

    The image score re-weights the largest distance by how far the nearest bank entry is from its own
    neighbours (Eq. 6 and 7).

    Differences: tokens of the shared backbone's first two stages instead of a ResNet's. At the borders, the
    local mean is taken over the positions that exist; the original code pads with zeros. The original keeps 1
    to 10 % of the bank (a coreset); with few normal images a bank is small, so a coreset is taken only above
    `bank_size` tokens, which K <= 8 images of 225 patches never reach.

    Args:
        bank_size: largest number of tokens in the bank.
        neighbours: b of the re-weighting; the paper leaves it open, its code takes 9 at most.
    """

    source = "Roth et al., CVPR 2022"

    def __init__(self, bank_size: int = 2000, neighbours: int = 9):
        self.bank_size, self.neighbours = bank_size, neighbours

    def _fit(self, normals: Images, category: str) -> None:
        tokens = self._tokens(normals).flatten(0, 1)  # [K N, C]
        self.bank = tokens[coreset(tokens, self.bank_size)] if len(tokens) > self.bank_size else tokens

    def _score(self, queries: Images) -> Answer:
        tokens = self._tokens(queries)  # [B, N, C]
        half = self.bank.square().sum(1) / 2
        # image by image, because the matrix is large; the root is taken of the minima alone
        found = [torch.addmm(half, one, self.bank.T, alpha=-1).min(1) for one in tokens]
        nearest = torch.stack([one.indices for one in found])
        squares = 2 * torch.stack([one.values for one in found]) + tokens.square().sum(2)
        maps = squares.clamp_min(0).sqrt()  # [B, N]
        worst = maps.argmax(1)
        image = torch.arange(len(maps), device=maps.device)
        entry = self.bank[nearest[image, worst]]  # [B, C]
        count = min(self.neighbours, len(self.bank))
        among = torch.cdist(entry, self.bank).topk(count, largest=False)
        around = self.bank[among.indices]  # [B, b, C]
        to_all = torch.linalg.vector_norm(around - tokens[image, worst][:, None], dim=-1)
        largest = maps[image, worst]
        weight = 1 - torch.exp(largest - torch.logsumexp(to_all, 1))
        return Answer(weight * largest, maps)

    @staticmethod
    def _tokens(images: Images) -> Float[Tensor, "B N C"]:
        return images.tokens(stages=2, average=3)


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
    return torch.tensor(chosen, device=tokens.device)
