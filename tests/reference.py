"""InCTRL's scores in plain loops, from the formulas alone: slow, and independent of the package's code."""

import math

import torch


def cosine(a, b):
    return float(a @ b) / (math.sqrt(float(a @ a)) * math.sqrt(float(b @ b)))


def patch_map(query, prompts):
    """query [L][N] of vectors, prompts [K][L][N]: mean over blocks of half of 1 - the best cosine."""
    blocks, patches = len(query), len(query[0])
    result = []
    for i in range(patches):
        total = 0.0
        for block in range(blocks):
            best = max(cosine(query[block][i], patch) for prompt in prompts for patch in prompt[block])
            total += (1 - best) / 2
        result.append(total / blocks)
    return result


def score_head(x, head):
    """Linear, ReLU, BatchNorm with running statistics, twice; Linear, sigmoid."""
    for layer, norm in ((head.layer1, head.norm1), (head.layer2, head.norm2)):
        x = layer.weight @ x + layer.bias
        x = torch.stack([max(v, v * 0) for v in x])
        if isinstance(norm, torch.nn.BatchNorm1d):
            x = (x - norm.running_mean) / torch.sqrt(norm.running_var + 1e-5) * norm.weight + norm.bias
    return 1 / (1 + math.exp(-float(head.layer3.weight[0] @ x + head.layer3.bias[0])))


def adapt(x, adapter):
    hidden = adapter.down.weight @ x
    hidden = torch.where(hidden > 0, hidden, 0 * hidden)
    out = adapter.up.weight @ hidden
    return torch.where(out > 0, out, 0 * out)


def paper_scores(model, cls, patches, prompt_cls, prompt_patches, text):
    """All terms of one query under the paper's head, as a dict."""
    residuals = patch_map(patches, prompt_patches)
    prototype = sum(adapt(c, model.adapter) for c in prompt_cls) / len(prompt_cls)
    image = score_head(prototype - adapt(cls, model.adapter), model.head.image)
    logits = [100 * cosine(cls, t) for t in text]
    text_score = 1 / (1 + math.exp(logits[0] - logits[1]))
    holistic_map = [m + image + text_score for m in residuals]
    holistic = score_head(torch.tensor(holistic_map, dtype=cls.dtype), model.head.holistic)
    return {
        "patch_map": residuals,
        "patch": max(residuals),
        "image": image,
        "text": text_score,
        "holistic_map": holistic_map,
        "holistic": holistic,
        "final": (holistic + max(residuals)) / 2,
    }
