"""WinCLIP: CLIP embeds the image, its windows and its patches, and compares them with normal ones."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from inctrl_lite.backbones.base import TEXT, WINDOWS
from inctrl_lite.baselines.base import Answer, Images, Method
from inctrl_lite.baselines.windows import SIDES, window_indices
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.residual import text_cosines, text_score


class WinCLIP(Method):
    """Text score and largest residual of windows and patches, averaged (the paper's few-shot score).

    Differences: classification only; the paper's text-guided window map is left out.
    """

    source = "Jeong et al., CVPR 2023"
    needs = frozenset({TEXT, WINDOWS})

    def _fit(self, normals: Images, category: str) -> None:
        self.text, self.normals = text_prototypes(normals.backbone, category), normals

    def _score(self, queries: Images) -> Answer:
        residuals = {side: queries.window_residuals(self.normals, side) for side in SIDES}
        maps = residual_map(residuals, queries.backbone.map_grid)
        text = text_score(text_cosines(queries.features.global_embedding, self.text))
        return Answer((maps.amax(1) + text) / 2, maps)


def residual_map(residuals: dict[int, Tensor], grid: tuple[int, int]) -> Float[Tensor, "B N"]:
    """Mean over the scales; `residuals` holds those of the windows by their side [B, W]."""
    levels = [values if side == 1 else distribute(values, side, grid) for side, values in residuals.items()]
    return torch.stack(levels).mean(0)


def distribute(scores: Float[Tensor, "B W"], side: int, grid: tuple[int, int]) -> Float[Tensor, "B N"]:
    """Harmonic mean, at every patch, of the scores of all windows that cover it.

    >>> distribute(torch.tensor([[0.5, 0.25]]), 2, (2, 3))[0, :3].tolist()    # the middle: 2 / (2 + 4)
    [0.5, 0.3333333432674408, 0.25]
    """
    index = window_indices(side, grid).to(scores.device)
    inverse = scores.new_zeros(len(scores), grid[0] * grid[1])
    count = torch.zeros_like(inverse)
    inverse.index_add_(1, index.flatten(), (1 / scores).repeat_interleave(side * side, dim=1))
    count.index_add_(1, index.flatten(), torch.ones_like(scores).repeat_interleave(side * side, dim=1))
    return count / inverse
