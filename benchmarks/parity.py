"""Compare this package with outputs of the public InCTRL code: python benchmarks/parity.py FILE.npz

Prints the largest error of each term against its tolerance; exits 0 when all are within, else 1. FILE
holds inputs, weights and outputs of the public code (mala-lab/InCTRL at cc535d0) for a small random model:
one query at a time for K = 1, 2, 4, 8 (`eval_K*`), and one training step with correctly permuted tensors
(`trainF`). Both precisions are checked.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inctrl_lite.backbones import Backbone, ImageFeatures, load_backbone
from inctrl_lite.checkpoint import PUBLIC_KEYS, split_public
from inctrl_lite.losses import focal_loss
from inctrl_lite.model import InCTRL
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.residual import image_residual
from inctrl_lite.support import SupportSet

TOLERANCE = {"f32": {"eval": 1e-5, "train": 1e-4}, "f64": {"eval": 1e-10, "train": 1e-10}}
DTYPE = {"f32": torch.float32, "f64": torch.float64}
OUT_LAYERS = (7, 9, 11)


class Term(NamedTuple):
    """One array as this package computes it; compared `where` True (None: everywhere)."""

    name: str
    value: Tensor
    where: Tensor | None = None


class Check(NamedTuple):
    """One compared array."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


def load_golden(golden, dtype: torch.dtype) -> tuple[Backbone, InCTRL]:
    """The small random model of the file, as backbone and learned part."""
    meta = json.loads(bytes(golden["meta"]))
    state = {key[3:]: torch.from_numpy(golden[key]) for key in golden.files if key.startswith("sd/")}
    learned, clip, report = split_public(state)
    assert not report.missing and not report.unused, report
    with tempfile.TemporaryDirectory() as folder:
        from safetensors.torch import save_file

        config = {"model_cfg": meta["cfg"], "preprocess_cfg": {"mean": meta["mean"], "std": meta["std"]}}
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(config))
        clip = {"logit_scale": torch.tensor(1.0)} | clip  # not stored: the method has its own constant
        save_file({k: v.contiguous() for k, v in clip.items()}, Path(folder) / "open_clip_model.safetensors")
        backbone = load_backbone(f"local-dir:{folder}", taps=OUT_LAYERS).to(dtype=dtype)
    model = InCTRL(embed_dim=backbone.embed_dim, num_patches=backbone.num_patches)
    model.load_state_dict(learned)
    return backbone, model.to(dtype).eval()


def compare(golden, precision: str) -> Iterator[Check]:
    """All checks of one precision, "f32" or "f64"; an array that nobody computes fails too."""
    expected = {key.removeprefix(f"{precision}/") for key in golden.files if key.startswith(f"{precision}/")}
    expected = {key for key in expected if key.startswith(("eval_K", "trainF/", "block", "text_proto/"))}
    expected -= {key for key in expected if ".bn1." in key}  # declared by the public code, never used
    expected -= {key for key in expected if key.endswith(("block_shape", "first4_patches"))}
    for name, ours, where in compute(golden, precision):
        if name not in expected:
            continue  # the file stores some arrays in one precision only
        expected.remove(name)
        theirs = torch.as_tensor(golden[f"{precision}/{name}"]).to(torch.float64)
        error = np.nan
        if ours.shape == theirs.shape:
            difference = (ours.detach().to(torch.float64) - theirs).abs()
            error = (difference if where is None else difference * where).max().item()
        tolerance = TOLERANCE[precision]["train" if name.startswith("trainF/") else "eval"]
        if "stats" in name or "norm" in name:  # sums over many entries: relative to their size
            tolerance *= max(1.0, theirs.abs().max().item())
        yield Check(f"{precision}/{name}", error, tolerance)
    for name in sorted(expected):
        yield Check(f"{precision}/{name} (not computed)", np.nan, 0.0)


def compute(golden, precision: str) -> Iterator[Term]:
    """What this package gives for each array of the file."""
    meta = json.loads(bytes(golden["meta"]))
    dtype = DTYPE[precision]
    backbone, model = load_golden(golden, dtype)

    def encode(images: np.ndarray) -> ImageFeatures:
        mean, std = (torch.tensor(meta[key]).view(3, 1, 1) for key in ("mean", "std"))
        return backbone.encode_images(((torch.from_numpy(images).float() / 255 - mean) / std).to(dtype))

    query, normals = encode(golden["images/query"]), encode(golden["images/prompt"])
    for layer, block in enumerate(OUT_LAYERS):
        tokens = query.stages[layer].tokens
        yield Term(f"block{block}/query0", tokens[0])
        yield Term(f"block{block}/stats", torch.stack([statistics(p) for p in tokens]))

    prototypes = {name: text_prototypes(backbone, name) for name in sorted(set(meta["names"]))}
    for name, prototype in prototypes.items():
        yield Term(f"text_proto/{name}", prototype)
    text = torch.stack([prototypes[name] for name in meta["names"]])

    for shots in meta["Ks"]:
        support = SupportSet.of(normals[:shots])
        with torch.no_grad():
            scores = model(query, support, text)
            adapter = model.head.adapter
            residual = image_residual(adapter(query.global_embedding), adapter(support.global_embedding))
        yield Term(f"eval_K{shots}/token", query.global_embedding)
        yield Term(f"eval_K{shots}/token_ref", residual)
        yield Term(f"eval_K{shots}/text_score", scores.text)
        yield Term(f"eval_K{shots}/img_score", scores.image)
        yield Term(f"eval_K{shots}/patch_map", scores.patch_map)
        yield Term(f"eval_K{shots}/max_patch", scores.patch)
        yield Term(f"eval_K{shots}/holistic_map", scores.holistic_map)
        yield Term(f"eval_K{shots}/holistic_score", scores.holistic)
        yield Term(f"eval_K{shots}/final", scores.final)
    yield from train_step(model, query, normals, text, torch.tensor(meta["labels"], dtype=dtype))


def train_step(
    model: InCTRL, query: ImageFeatures, normals: ImageFeatures, text: Tensor, labels: Tensor
) -> Iterator[Term]:
    """One AdamW step on a batch of 8 with K = 2: terms, loss, gradients, parameters, buffers.

    AdamW's first step is lr * sign(gradient). Where a gradient is rounding noise, so is the step: what
    comes after it is compared only where gradients are clearly not zero.
    """
    noise = 1e-6
    size = len(query)
    chosen = torch.tensor([[(i + 3 * s) % size for s in (0, 1)] for i in range(size)])  # [B, K]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    scores = model(query, SupportSet.per_query(normals[chosen]), text)
    final, image = focal_loss(scores.final, labels), focal_loss(scores.image, labels)
    (final + image).backward()
    optimiser.step()

    yield Term("trainF/final", scores.final)
    yield Term("trainF/img_score", scores.image)
    yield Term("trainF/patch_map", scores.patch_map)
    yield Term("trainF/holistic_map", scores.holistic_map)
    yield Term("trainF/text_score", scores.text)
    yield Term("trainF/loss", torch.stack([final + image, final, image]))
    all_clear = torch.tensor(True)
    for name, parameter in model.named_parameters():
        key = PUBLIC_KEYS[name]
        clear = parameter.grad.abs() > noise
        all_clear = all_clear & clear.all()
        yield Term(f"trainF/grad_norm/{key}", parameter.grad.norm())
        yield Term(f"trainF/grad/{key}", parameter.grad)
        yield Term(f"trainF/after_step/{key}", parameter, clear)
        yield Term(f"trainF/after_step_stats/{key}", statistics(parameter.detach()), clear.all())
        delta = (parameter.detach() - before[name]).norm()
        yield Term(f"trainF/after_step_delta_norm/{key}", delta, clear.all())
    for name, value in model.named_buffers():
        yield Term(f"trainF/after_step_buffer/{PUBLIC_KEYS[name]}", value)
    with torch.no_grad():
        after = model.eval()(query[:1], SupportSet.of(normals[:2]), text[:1])
    yield Term("trainF/final_after_step_K2_q0", after.final, all_clear)


def statistics(x: Tensor) -> Tensor:
    """The file's summary of an array: mean, biased deviation, L2 norm, sum of |x|, first, last."""
    x = x.flatten().double()
    return torch.stack([x.mean(), x.std(correction=0), x.norm(), x.abs().sum(), x[0], x[-1]])


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    with np.load(sys.argv[1]) as golden:
        checks = [check for precision in ("f32", "f64") for check in compare(golden, precision)]
    for check in checks:
        print(
            f"{'ok  ' if check.passed else 'FAIL'} {check.error:9.2e} <= {check.tolerance:.0e}  {check.name}"
        )
    failed = sum(not check.passed for check in checks)
    print(f"{len(checks) - failed} of {len(checks)} arrays within tolerance")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
