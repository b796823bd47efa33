"""Exercises of notebook 02: CLIP features."""

from collections.abc import Callable

import torch
from torch import Tensor

from inctrl_lite.backbones import Stage
from inctrl_lite.checks.engine import Exercise, difference, generator, same


def patch_of_pixel(y: int, x: int, side: int, width: int) -> int:
    """Number of the patch, counted row by row from 0, that holds pixel (y, x) of an image `width` wide."""
    return (y // side) * (width // side) + x // side


check_patch_of_pixel = Exercise(
    solution=patch_of_pixel,
    # the first pixel of a patch, and the last one, too
    cases=lambda seed: ((37, 5, 8, 120), (15, 48, 16, 240), (96, 71, 8, 120), (23, 199, 14, 224))[seed],
    mistakes={
        "You count the rows and columns of pixels from 1. They are counted from 0, so y // side is the row "
        "of the patch.": lambda y, x, side, width: patch_of_pixel(y - 1, x - 1, side, width),
        "You have exchanged y and x: y counts downwards and gives the row, x gives the column.": (
            lambda y, x, side, width: patch_of_pixel(x, y, side, width)
        ),
        "You count patches from 1. The first patch is number 0.": lambda y, x, side, width: (
            patch_of_pixel(y, x, side, width) + 1
        ),
        "A row of the grid holds width // side patches, not `width`.": lambda y, x, side, width: (
            (y // side) * width + x // side
        ),
        "A row of the grid holds width // side patches, not `side`.": lambda y, x, side, width: (
            (y // side) * side + x // side
        ),
        "You round to the nearest patch. The number of whole patches before the pixel counts, so divide "
        "with //.": (lambda y, x, side, width: round(y / side) * (width // side) + round(x / side)),
        "The number is not a whole number: divide with // and not with /.": lambda y, x, side, width: (
            (y / side) * (width // side) + x / side
        ),
        "You divide the number of the pixel by the number of pixels in a patch. But a row of "
        "pixels runs through a whole row of patches: first find the row and the column of the "
        "patch.": (lambda y, x, side, width: (y * width + x) // side**2),
        "Row and column are right, but you add them. Above the patch lie whole rows of patches, each with "
        "width // side of them.": (lambda y, x, side, width: y // side + x // side),
        "You return row and column. One number is expected.": lambda y, x, side, width: (
            y // side,
            x // side,
        ),
        "You divide the number of the pixel. First find the row and the column of the patch.": (
            lambda y, x, side, width: (y * width + x) // side
        ),
    },
)


def collect_stages(outputs: list[Tensor], taps: tuple[int, ...], grid: tuple[int, int]) -> list[Stage]:
    """One Stage of patch tokens [B, N, C] for each of the blocks `taps`; outputs: [B, 1 + N, C] a block."""
    return [Stage(outputs[tap - 1][:, 1:], grid) for tap in taps]


def _blocks(seed: int) -> tuple[list[Tensor], tuple[int, ...], tuple[int, int]]:
    g = generator(seed)
    outputs = [torch.randn(2 + seed % 2, 1 + 6, 5, generator=g) for _ in range(8)]
    return outputs, ((3, 5, 6, 7), (1, 4, 5, 7), (2, 3, 5, 6), (1, 2, 4, 6))[seed], (2, 3)


def _tokens_and_grids(answer: Callable, *case) -> list:
    """Stages as (tokens, grid), so that they can be compared; what is no Stage stays as it is."""
    found = answer(*case)
    if isinstance(found, list | tuple):
        return [(one.tokens, tuple(one.grid)) if isinstance(one, Stage) else one for one in found]
    return found


def _no_stages(case: tuple, result, right: list) -> str | None:
    """What is wrong with the form of a result, or which stage is the first wrong one."""
    if not isinstance(result, list | tuple):
        return f"returns a {type(result).__name__}: a list with one Stage for each tap is expected"
    if len(result) != len(right):
        return f"returns {len(result)} stages, expected {len(right)}: one for each tap"
    for number, (one, other) in enumerate(zip(result, right, strict=True)):
        if not isinstance(one, tuple):
            return f"entry {number} of the list is a {type(one).__name__}, expected a Stage(tokens, grid)"
        if one[1] != other[1]:
            return f"stage {number} has the grid {one[1]}, expected {other[1]}"
        if not same(one[0], other[0], 1e-5):
            return f"the tokens of stage {number}: {difference(one[0], other[0])}"
    return None


def _stages(tokens: Callable) -> Callable:
    """A wrong answer whose tokens of a tap are `tokens(outputs, tap)`."""
    return lambda outputs, taps, grid: [Stage(tokens(outputs, tap), grid) for tap in taps]


check_collect_stages = Exercise(
    solution=collect_stages,
    cases=_blocks,
    run=_tokens_and_grids,
    explain=_no_stages,
    inputs=lambda outputs, taps, grid: (
        f"{len(outputs)} outputs [B, 1 + N, C] = {list(outputs[0].shape)}, taps {taps}, grid {grid}"
    ),
    mistakes={
        "There is one token too many for the grid, because the class token is "
        "still there. It is the first token, and tokens are axis 1: drop it with "
        "[:, 1:].": _stages(lambda o, tap: o[tap - 1]),
        "You drop the last patch. The class token is the first token, so write [:, 1:].": _stages(
            lambda o, tap: o[tap - 1][:, :-1]
        ),
        "You take the block after the right one. Taps are counted from 1, and a Python list from 0: block "
        "`tap` is outputs[tap - 1].": _stages(lambda o, tap: o[tap][:, 1:]),
        "You take the block before the right one. Block `tap` is outputs[tap - 1].": _stages(
            lambda o, tap: o[tap - 2][:, 1:]
        ),
        "You return tensors. Put the tokens of each block into a Stage: Stage(tokens, grid).": (
            lambda outputs, taps, grid: [outputs[tap - 1][:, 1:] for tap in taps]
        ),
        "You return one tensor for all blocks. Return a list with one Stage for each tap: "
        "stages of other backbones differ in width and grid, so they do not fit into one "
        "tensor.": (
            lambda outputs, taps, grid: torch.stack([outputs[tap - 1][:, 1:] for tap in taps], dim=1)
        ),
        "You take the last blocks and ignore the taps. Use the argument.": lambda outputs, taps, grid: [
            Stage(block[:, 1:], grid) for block in outputs[-len(taps) :]
        ],
        "You take all blocks. Only the blocks in `taps` are wanted.": lambda outputs, taps, grid: [
            Stage(block[:, 1:], grid) for block in outputs
        ],
        "The grid is the wrong way round: it is (rows, columns), as it is given.": (
            lambda outputs, taps, grid: [Stage(outputs[tap - 1][:, 1:], grid[::-1]) for tap in taps]
        ),
    },
)


def _letters(case: tuple, result, right: Tensor) -> str | None:
    """The shape of a result in letters, if it has the right axes in a wrong order."""
    sizes = list(right.shape)
    if not isinstance(result, Tensor) or sorted(result.shape) != sorted(sizes) or len({*sizes}) < 4:
        return None
    if list(result.shape) == sizes:
        return (
            f"the shape is right, but a reshape stands where a permute is needed: {difference(result, right)}"
        )
    letters = ", ".join("BLNC"[sizes.index(size)] for size in result.shape)
    return (
        f"you return [{letters}], but [B, L, N, C] is expected. permute lists, for each axis of the "
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
    """Images and tokens change places by a transpose, then blocks and images by a reshape."""
    blocks, count, images, width = tokens.shape
    return tokens[:, 1:].transpose(1, 2).reshape(images, blocks, count - 1, width)


def _late_drop(tokens: Tensor) -> Tensor:
    """Reshaped first, so that the token that is dropped is a patch of some image."""
    blocks, count, images, width = tokens.shape
    return tokens.reshape(images, blocks, count, width)[:, :, 1:]


check_images_first = Exercise(
    solution=images_first,
    cases=_sequence_first,
    explain=_letters,
    mistakes={
        "The shape is right, but the numbers are wrong: reshape keeps the order in memory "
        "and only divides it differently, so patches of all images are mixed. Use "
        "permute.": _reshaped,
        "The shape is right, but the numbers are wrong: images and blocks must change places by a "
        "permute, not by a reshape.": _half_reshaped,
        "The shape is right, but the numbers are wrong: your reshape comes first and mixes everything, so "
        "the token that you drop is not the class token.": _late_drop,
        "The class token is still there: it is the first of the 1 + N tokens.": lambda t: t.permute(
            2, 0, 1, 3
        ),
        "You drop the last patch. The class token is the first token.": lambda t: t[:, :-1].permute(
            2, 0, 1, 3
        ),
        "You drop the first block. Tokens are axis 1 here, so write [:, 1:].": lambda t: t[1:].permute(
            2, 0, 1, 3
        ),
        "You drop the first image. Tokens are axis 1 of the input, before the permute.": (
            lambda t: t[:, :, 1:].permute(2, 0, 1, 3)
        ),
        "Patches and blocks are exchanged: you return [B, N, L, C], but [B, L, N, C] is expected.": (
            lambda t: t[:, 1:].permute(2, 1, 0, 3)
        ),
        "The blocks still come first: you return [L, B, N, C], but [B, L, N, C] is expected.": (
            lambda t: t[:, 1:].permute(0, 2, 1, 3)
        ),
        "No axis has changed its place yet: you return [L, N, B, C], but [B, L, N, C] is expected.": (
            lambda t: t[:, 1:]
        ),
        "You list where each old axis goes. permute asks the opposite: for each new axis, which old "
        "axis it is. You return [N, C, L, B]. B is the old axis 2 and comes first: permute(2, 0, 1, "
        "3).": (lambda t: t[:, 1:].permute(1, 3, 0, 2)),
        "You permute the inverse way. permute lists, for each new axis, which old axis it is. B is the "
        "old axis 2 and comes first: permute(2, 0, 1, 3).": lambda t: t[:, 1:].permute(1, 2, 0, 3),
    },
)


# --- harder: another image size ----------------------------------------------------------------------


def tokens_on_grid(patches: Tensor, class_embedding: Tensor, positions: Tensor, old, new) -> Tensor:
    """Tokens [B, 1 + N', C] before the first block, for patches [B, N', C] on the grid `new`."""
    maps = positions[1:].T.reshape(1, -1, *old)  # [1, C, rows, columns]
    maps = torch.nn.functional.interpolate(maps, size=tuple(new), mode="bilinear", align_corners=False)
    resampled = torch.cat([positions[:1], maps[0].flatten(1).T])
    class_tokens = class_embedding.expand(len(patches), 1, -1)
    return torch.cat([class_tokens, patches], dim=1) + resampled


def _grids(seed: int) -> tuple:
    g = generator(seed)
    B, C, old, new = (
        (2, 6, (3, 4), (5, 6)),
        (3, 5, (4, 4), (2, 3)),
        (1, 7, (2, 5), (5, 2)),
        (2, 4, (3, 5), (3, 5)),
    )[seed]
    patches = torch.randn(B, new[0] * new[1], C, generator=g)
    positions = torch.randn(1 + old[0] * old[1], C, generator=g)
    return patches, torch.randn(C, generator=g), positions, old, new


def _resized(maps: Tensor, new, mode: str = "bilinear", **how) -> Tensor:
    how |= {} if mode in ("nearest", "area") else {"align_corners": how.get("align_corners", False)}
    return torch.nn.functional.interpolate(maps, size=tuple(new), mode=mode, **how)


def _as_maps(positions: Tensor, old) -> Tensor:
    return positions[1:].T.reshape(1, -1, *old)


def _on_grid(
    resample: Callable = lambda positions, old, new: _resized(_as_maps(positions, old), new)[0].flatten(1).T,
    first: Callable = lambda positions, resampled: positions[:1],
    join: Callable = lambda class_tokens, patches: torch.cat([class_tokens, patches], 1),
    add: Callable = lambda tokens, where: tokens + where,
) -> Callable:
    """Tokens of which one part is made in another way."""

    def wrong(patches, class_embedding, positions, old, new):
        resampled = resample(positions, old, new)
        where = torch.cat([first(positions, resampled), resampled])
        return add(join(class_embedding.expand(len(patches), 1, -1), patches), where)

    return wrong


def _all_positions_in_a_row(patches, class_embedding, positions, old, new):
    """The list of 1 + N vectors is stretched, with the class token in it."""
    count = (1 + patches.shape[1],)
    where = torch.nn.functional.interpolate(positions.T[None], size=count, mode="linear")[0].T
    return torch.cat([class_embedding.expand(len(patches), 1, -1), patches], 1) + where


def _patches_alone(patches, class_embedding, positions, old, new):
    return tokens_on_grid(patches, class_embedding, positions, old, new)[:, 1:]


def _more_channels_and_patches(patches, class_embedding, positions, old, new) -> dict[str, tuple]:
    """The same case with twice as many channels, and with twice as many new patches."""
    two, taller = torch.cat([class_embedding] * 2), (2 * new[0], new[1])
    wide = torch.cat([patches] * 2, -1), two, torch.cat([positions] * 2, -1), old, new
    if old == new:  # nothing is resampled, so that an answer may do less here
        return {"channels": wide}
    return {
        "channels": wide,
        "patches": (torch.cat([patches] * 2, 1), class_embedding, positions, old, taller),
    }


check_tokens_on_grid = Exercise(
    solution=tokens_on_grid,
    cases=_grids,
    larger=_more_channels_and_patches,
    mistakes={
        "reshape(1, C, rows, columns) of [N, C] mixes positions and channels. First exchange the two axes.": (
            _on_grid(
                lambda positions, old, new: _resized(positions[1:].reshape(1, -1, *old), new)[0].flatten(1).T
            )
        ),
        "The map is right, but a reshape reads it back: [C, N'] becomes [N', C] by a transpose.": _on_grid(
            lambda positions, old, new: _resized(_as_maps(positions, old), new).reshape(
                -1, positions.shape[1]
            )
        ),
        "You read the new grid column by column. Patches are counted row by row.": _on_grid(
            lambda positions, old, new: (
                _resized(_as_maps(positions, old), new)[0].transpose(1, 2).flatten(1).T
            )
        ),
        "Rows and columns of the old grid are exchanged: a grid is (rows, columns).": _on_grid(
            lambda positions, old, new: _resized(_as_maps(positions, old[::-1]), new)[0].flatten(1).T
        ),
        "Rows and columns of the new grid are exchanged: a grid is (rows, columns).": _on_grid(
            lambda positions, old, new: _resized(_as_maps(positions, old), new[::-1])[0].flatten(1).T
        ),
        "align_corners is True here. Then the corners of both grids are the same points, but patches have a "
        "size.": _on_grid(
            lambda positions, old, new: (
                _resized(_as_maps(positions, old), new, align_corners=True)[0].flatten(1).T
            )
        ),
        "You take the nearest position. The task asks for bilinear.": _on_grid(
            lambda positions, old, new: _resized(_as_maps(positions, old), new, "nearest")[0].flatten(1).T
        ),
        "This is bicubic. The task asks for bilinear.": _on_grid(
            lambda positions, old, new: _resized(_as_maps(positions, old), new, "bicubic")[0].flatten(1).T
        ),
        "You smooth before you reduce (antialias=True). The task asks for plain bilinear.": _on_grid(
            lambda positions, old, new: (
                _resized(_as_maps(positions, old), new, antialias=True)[0].flatten(1).T
            )
        ),
        "You stretch the row of patch positions. It is a grid: neighbours above and below count.": _on_grid(
            lambda positions, old, new: (
                torch.nn.functional.interpolate(
                    positions[1:].T[None], size=(new[0] * new[1],), mode="linear"
                )[0].T
            )
        ),
        "The class token's position takes part in the resampling. It has no place in the grid.": (
            _all_positions_in_a_row
        ),
        "You drop the last position. The class token's is the first.": _on_grid(
            lambda positions, old, new: _resized(_as_maps(positions.roll(1, 0), old), new)[0].flatten(1).T
        ),
        "The class token gets no position. It has one of its own, the first.": _on_grid(
            first=lambda positions, resampled: torch.zeros_like(positions[:1])
        ),
        "The class token gets the mean of the patch positions. It has one of its own, the first.": _on_grid(
            first=lambda positions, resampled: resampled.mean(0, keepdim=True)
        ),
        "The class token is at the end. It is token 0.": lambda patches, c, positions, old, new: (
            tokens_on_grid(patches, c, positions, old, new).roll(-1, 1)
        ),
        "The class token is missing.": _patches_alone,
        "Nothing is added to the patches: the positions are missing.": _on_grid(
            add=lambda tokens, where: torch.cat([tokens[:, :1] + where[:1], tokens[:, 1:]], 1)
        ),
        "You replace the tokens by the positions. They are added.": _on_grid(
            add=lambda tokens, where: where.expand_as(tokens)
        ),
        "You multiply by the positions. They are added.": _on_grid(add=lambda tokens, where: tokens * where),
    },
)
