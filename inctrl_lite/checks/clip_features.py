"""Exercises of notebook 02: CLIP features."""

import torch
from torch import Tensor

from inctrl_lite.checks.engine import Exercise, generator


def patch_of_pixel(y: int, x: int, side: int, width: int) -> int:
    """Number of the patch, counted row by row from 0, that holds pixel (y, x) of an image `width` wide."""
    return (y // side) * (width // side) + x // side


check_patch_of_pixel = Exercise(
    solution=patch_of_pixel,
    cases=lambda seed: ((37, 5, 8, 120), (9, 50, 16, 240), (100, 71, 8, 120), (23, 199, 14, 224))[seed],
    mistakes={
        "y and x are mixed up: y counts downwards and says the row, x says the column": (
            lambda y, x, side, width: patch_of_pixel(x, y, side, width)
        ),
        "you count from 1: the first patch is number 0": lambda y, x, side, width: (
            patch_of_pixel(y, x, side, width) + 1
        ),
        "a row of the grid holds width // side patches, not `width`": lambda y, x, side, width: (
            (y // side) * width + x // side
        ),
        "a row of the grid holds width // side patches, not `side`": lambda y, x, side, width: (
            (y // side) * side + x // side
        ),
        "you round to the nearest patch: whole patches before the pixel count, so divide with //": (
            lambda y, x, side, width: round(y / side) * (width // side) + round(x / side)
        ),
        "the number is no whole number: divide with // and not with /": lambda y, x, side, width: (
            (y / side) * (width // side) + x / side
        ),
        "dividing the pixel's number by the pixels of a patch does not give the patch: a row of pixels runs "
        "through a whole row of patches. Find the row and the column of the patch first": (
            lambda y, x, side, width: (y * width + x) // side**2
        ),
        "row and column are right, but added: above lie whole rows, width // side patches each": (
            lambda y, x, side, width: y // side + x // side
        ),
        "this is row and column: asked is one number": lambda y, x, side, width: (y // side, x // side),
        "this is the number of the *pixel*, divided: find the row and the column of the patch first": (
            lambda y, x, side, width: (y * width + x) // side
        ),
    },
)


def collect_taps(outputs: list[Tensor], taps: tuple[int, ...]) -> Tensor:
    """Patch tokens [B, L, N, C] of the blocks `taps` (counted from 1); outputs: [B, 1 + N, C] a block."""
    return torch.stack([outputs[tap - 1][:, 1:] for tap in taps], dim=1)


def _blocks(seed: int) -> tuple[list[Tensor], tuple[int, ...]]:
    g = generator(seed)
    outputs = [torch.randn(2 + seed % 2, 1 + 6, 5, generator=g) for _ in range(8)]
    return outputs, ((3, 5, 6, 7), (1, 4, 5, 7), (2, 3, 5, 6), (1, 2, 4, 6))[seed]


def _shape(outputs: list[Tensor], taps: tuple[int, ...]) -> tuple[int, int, int, int]:
    images, tokens, width = outputs[0].shape
    return images, len(taps), tokens - 1, width


check_collect_taps = Exercise(
    solution=collect_taps,
    cases=_blocks,
    mistakes={
        "the class token is still there: it is the first of the tokens, drop it": lambda o, t: torch.stack(
            [o[tap - 1] for tap in t], dim=1
        ),
        "you drop the last patch: the class token comes *first*": lambda o, t: torch.stack(
            [o[tap - 1][:, :-1] for tap in t], dim=1
        ),
        "one block too late: taps count from 1, Python's lists from 0": lambda o, t: torch.stack(
            [o[tap][:, 1:] for tap in t], dim=1
        ),
        "one block too early: block `tap` is outputs[tap - 1]": lambda o, t: torch.stack(
            [o[tap - 2][:, 1:] for tap in t], dim=1
        ),
        "the blocks come first: [L, B, N, C] is what you return, [B, L, N, C] is asked": (
            lambda o, t: torch.stack([o[tap - 1][:, 1:] for tap in t])
        ),
        "the blocks stand behind the patches: [B, N, L, C] is what you return, [B, L, N, C] is asked": (
            lambda o, t: torch.stack([o[tap - 1][:, 1:] for tap in t], dim=2)
        ),
        "the shape is right, but a reshape mixed images with blocks: [L, B, ...] becomes [B, L, ...] by "
        "stacking along dim=1 (or by a permute)": lambda o, t: torch.stack(
            [o[tap - 1][:, 1:] for tap in t]
        ).reshape(_shape(o, t)),
        "you joined the blocks' patches into one long row: `cat` goes on along an axis, `stack` makes a new "
        "one": lambda o, t: torch.cat([o[tap - 1][:, 1:] for tap in t], dim=1),
        "you dropped the first *block*: after stacking, axis 1 counts blocks, and tokens are axis 2": (
            lambda o, t: torch.stack([o[tap - 1] for tap in t], dim=1)[:, 1:]
        ),
        "you dropped the first *image*: tokens are axis 1 of a block's output, so [:, 1:]": (
            lambda o, t: torch.stack([o[tap - 1][1:] for tap in t], dim=1)
        ),
        "you took the last blocks, whatever the taps: use the argument": lambda o, t: torch.stack(
            [block[:, 1:] for block in o[-len(t) :]], dim=1
        ),
        "you took all blocks: only those in `taps` are asked": lambda o, t: torch.stack(
            [block[:, 1:] for block in o], dim=1
        ),
    },
)


def _letters(case: tuple, result, right: Tensor) -> str | None:
    """The shape of a result in letters, if it has the right axes in a wrong order."""
    sizes = list(right.shape)
    if not isinstance(result, Tensor) or sorted(result.shape) != sorted(sizes) or len({*sizes}) < 4:
        return None
    if list(result.shape) == sizes:
        return "the shape is right and the numbers are not: somewhere a reshape stands for a permute"
    letters = ", ".join("BLNC"[sizes.index(size)] for size in result.shape)
    return (
        f"[{letters}] is what you return, [B, L, N, C] is asked: permute lists, for each axis of the "
        "result, which axis of its input it was"
    )


def images_first(tokens: Tensor) -> Tensor:
    """Patch tokens [B, L, N, C] of stacked, sequence-first block outputs [L, 1 + N, B, C]."""
    return tokens[:, 1:].permute(2, 0, 1, 3)


def _sequence_first(seed: int) -> tuple[Tensor]:
    # few images, so that several wrong orders of the axes still have a possible size
    sizes = ((3, 1 + 6, 2, 5), (2, 1 + 4, 3, 5), (3, 1 + 5, 4, 2), (3, 1 + 9, 3, 3))[seed]
    return (torch.randn(sizes, generator=generator(seed)),)


def _reshaped(tokens: Tensor) -> Tensor:
    blocks, count, images, width = tokens.shape
    return tokens[:, 1:].reshape(images, blocks, count - 1, width)


def _half_reshaped(tokens: Tensor) -> Tensor:
    """The images are brought forward within a block, then blocks and images change places by a reshape."""
    blocks, count, images, width = tokens.shape
    return tokens[:, 1:].transpose(1, 2).reshape(images, blocks, count - 1, width)


def _late_drop(tokens: Tensor) -> Tensor:
    """Reshaped first, so that the token that is dropped is somebody's patch."""
    blocks, count, images, width = tokens.shape
    return tokens.reshape(images, blocks, count, width)[:, :, 1:]


check_images_first = Exercise(
    solution=images_first,
    cases=_sequence_first,
    explain=_letters,
    mistakes={
        "right shape, wrong numbers: reshape keeps the order in memory and only cuts it anew, so patches of "
        "all images are mixed: use permute": _reshaped,
        "right shape, wrong numbers: images and blocks still have to change places by a permute, not by a "
        "reshape": _half_reshaped,
        "right shape, wrong numbers: the reshape comes first and mixes everything, so what you drop is not "
        "the class token": _late_drop,
        "the class token is still there: it is the first of the 1 + N tokens": lambda t: t.permute(
            2, 0, 1, 3
        ),
        "you drop the last patch: the class token comes *first*": lambda t: t[:, :-1].permute(2, 0, 1, 3),
        "you drop the first *block*: tokens are axis 1 here, so [:, 1:]": lambda t: t[1:].permute(2, 0, 1, 3),
        "you drop the first *image*: tokens are axis 1 of what you are given, before the permute": (
            lambda t: t[:, :, 1:].permute(2, 0, 1, 3)
        ),
        "patches and blocks are swapped: [B, N, L, C] is what you return, [B, L, N, C] is asked": (
            lambda t: t[:, 1:].permute(2, 1, 0, 3)
        ),
        "the blocks still come first: [L, B, N, C] is what you return, [B, L, N, C] is asked": (
            lambda t: t[:, 1:].permute(0, 2, 1, 3)
        ),
        "nothing has changed places yet: [L, N, B, C] is what you return, [B, L, N, C] is asked": (
            lambda t: t[:, 1:]
        ),
        "you say where each old axis goes, but permute asks the other way round: for each new axis, which "
        "old one it is. [N, C, L, B] is what you return; B (old axis 2) comes first: permute(2, 0, 1, 3)": (
            lambda t: t[:, 1:].permute(1, 3, 0, 2)
        ),
        "you permute the inverse way: permute lists, for each new axis, which old one it is, so B (old axis "
        "2) comes first: permute(2, 0, 1, 3)": lambda t: t[:, 1:].permute(1, 2, 0, 3),
    },
)
