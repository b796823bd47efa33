"""WinCLIP: CLIP looks at the image, its windows and its patches, and compares them with normal ones."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.backbone import Backbone
from inctrl_lite.baselines.base import Answer, Images
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.residual import text_cosines, text_score

SIDES = (2, 3)  # windows of 2 x 2 and 3 x 3 patches


class WinCLIP:
    """Text score and largest residual of windows and patches, averaged (the paper's few-shot score).

    Differences: classification only; the paper's text-guided window map is left out.
    """

    name = "WinCLIP"
    source = "Jeong et al., CVPR 2023"
    training_free = True

    def fit(self, normals: Images, category: str) -> WinCLIP:
        self.text = text_prototypes(normals.backbone, category)
        self.normal = {key: value.flatten(0, 1) for key, value in normals.windows.items()}
        return self

    def score(self, queries: Images) -> Answer:
        maps = residual_map(queries.windows, self.normal, queries.backbone.grid)
        words = text_score(text_cosines(queries.features.cls, self.text))
        return Answer((maps.amax(1) + words) / 2, maps)


def residual_map(
    query: dict[int, Tensor], normal: dict[int, Tensor], grid: tuple[int, int]
) -> Float[Tensor, "B N"]:
    """Mean over the scales of the residuals to the nearest normal window of the same scale.

    Args:
        query: by side of the window in patches: embeddings [B, W, D].
        normal: the same for all windows of all normal images: [K W, D].
    """
    levels = []
    for side, windows in query.items():
        bank = F.normalize(normal[side], dim=-1)
        cosines = torch.stack([(F.normalize(one, dim=-1) @ bank.T).amax(1) for one in windows])
        residual = ((1 - cosines) / 2).clamp(0, 1)  # rounding may leave a cosine above 1
        levels.append(residual if side == 1 else spread(residual, side, grid))
    return torch.stack(levels).mean(0)


def window_indices(side: int, grid: tuple[int, int]) -> Int[Tensor, "W n"]:
    """Patches of each window of side x side patches, stride 1.

    >>> window_indices(2, (2, 3)).tolist()
    [[0, 1, 3, 4], [1, 2, 4, 5]]
    """
    patches = torch.arange(grid[0] * grid[1]).view(grid)
    return patches.unfold(0, side, 1).unfold(1, side, 1).reshape(-1, side * side)


def spread(scores: Float[Tensor, "B W"], side: int, grid: tuple[int, int]) -> Float[Tensor, "B N"]:
    """Harmonic mean, at every patch, of the scores of all windows that cover it.

    >>> spread(torch.tensor([[0.5, 0.25]]), 2, (2, 3))[0, :3].tolist()    # the middle: 2 / (2 + 4)
    [0.5, 0.3333333432674408, 0.25]
    """
    index = window_indices(side, grid).to(scores.device)
    inverse = scores.new_zeros(len(scores), grid[0] * grid[1])
    count = torch.zeros_like(inverse)
    inverse.index_add_(1, index.flatten(), (1 / scores).repeat_interleave(side * side, dim=1))
    count.index_add_(1, index.flatten(), torch.ones_like(scores).repeat_interleave(side * side, dim=1))
    return count / inverse


@torch.no_grad()
def window_embeddings(
    backbone: Backbone, images: Float[Tensor, "B 3 H W"], at_once: int = 1024
) -> dict[int, Tensor]:
    """Class embeddings of every window [B, W, D] by its side, and the last block's patch tokens (side 1).

    A window is embedded as if the image held nothing else: class token and the window's patch tokens, with
    the position embeddings they have in the whole image, go through the transformer alone.
    """
    visual = backbone.clip.visual
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
    tokens = visual.ln_pre(torch.cat([cls, patches], 1) + visual.positional_embedding)
    found = {}
    for side in SIDES:
        index = window_indices(side, backbone.grid).to(tokens.device)
        cls = tokens[:, None, :1].expand(-1, len(index), -1, -1)
        windows = torch.cat([cls, tokens[:, 1:][:, index]], 2).flatten(0, 1)
        out = torch.cat([visual.transformer(part)[:, 0] for part in windows.split(at_once)])
        found[side] = (visual.ln_post(out) @ visual.proj).unflatten(0, (len(images), -1))
    found[1] = visual.transformer(tokens)[:, 1:]
    return found
