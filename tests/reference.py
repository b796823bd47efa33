"""Scores in plain loops, from the formulas alone: slow, and independent of the package."""

import math

import torch


def cosine(a, b):
    return float(a @ b) / (math.sqrt(float(a @ a)) * math.sqrt(float(b @ b)))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def patch_map(query, normals):
    """query [L][N] of vectors, normals [K][L][N]: mean over stages of half of 1 - the best cosine."""
    stages, patches = len(query), len(query[0])
    result = []
    for i in range(patches):
        total = 0.0
        for stage in range(stages):
            best = max(cosine(query[stage][i], patch) for image in normals for patch in image[stage])
            total += (1 - best) / 2
        result.append(total / stages)
    return result


def stages_of(features):
    """[L][N] of vectors for one image, [K][L][N] for several."""
    if features.global_embedding.ndim == 1:
        return [list(stage.tokens) for stage in features.stages]
    return [[list(stage.tokens[k]) for stage in features.stages] for k in range(len(features))]


def score_head(x, head):
    """Linear, ReLU, BatchNorm with running statistics, twice; Linear, sigmoid."""
    for layer, norm in ((head.layer1, head.norm1), (head.layer2, head.norm2)):
        x = layer.weight @ x + layer.bias
        x = torch.stack([max(v, v * 0) for v in x])
        if isinstance(norm, torch.nn.BatchNorm1d):
            x = (x - norm.running_mean) / torch.sqrt(norm.running_var + 1e-5) * norm.weight + norm.bias
    return sigmoid(float(head.layer3.weight[0] @ x + head.layer3.bias[0]))


def adapt(x, adapter):
    hidden = adapter.down.weight @ x
    hidden = torch.where(hidden > 0, hidden, 0 * hidden)
    out = adapter.up.weight @ hidden
    return torch.where(out > 0, out, 0 * out)


def image_score(head, query, normals):
    adapted = [adapt(c, head.adapter) for c in normals.global_embedding]
    return score_head(sum(adapted) / len(adapted) - adapt(query.global_embedding, head.adapter), head.image)


def text_score(query, text, scale):
    logits = [scale * cosine(query.global_embedding, t) for t in text]
    return sigmoid(logits[1] - logits[0])


def paper_scores(model, query, normals, text):
    """All terms of one query under the paper's head, as a dict."""
    head = model.head
    residuals = patch_map(stages_of(query), stages_of(normals))
    image, words = image_score(head, query, normals), text_score(query, text, 100)
    holistic_map = [m + image + words for m in residuals]
    holistic = score_head(torch.tensor(holistic_map, dtype=query.global_embedding.dtype), head.holistic)
    return {
        "patch_map": residuals,
        "patch": max(residuals),
        "image": image,
        "text": words,
        "holistic_map": holistic_map,
        "holistic": holistic,
        "final": (holistic + max(residuals)) / 2,
    }


def smooth(row):
    """Mean over the (up to) three neighbours in a row, twice."""
    for _ in range(2):
        row = [sum(row[max(0, i - 1) : i + 2]) / len(row[max(0, i - 1) : i + 2]) for i in range(len(row))]
    return row


def statistics(normals):
    """Mean and standard deviation of normal residuals at each patch of a one-row map."""
    images = stages_of(normals)
    if len(images) == 1:
        maps = [patch_map_within(images[0])]
    else:
        maps = [patch_map(images[k], images[:k] + images[k + 1 :]) for k in range(len(images))]
    count, patches = len(maps), len(maps[0])
    flat = [value for row in maps for value in row]
    mean = sum(flat) / len(flat)
    std = math.sqrt(sum((v - mean) ** 2 for v in flat) / len(flat))
    local = smooth([sum(row[i] for row in maps) / count for i in range(patches)])
    squares = smooth([sum((row[i] - local[i]) ** 2 for row in maps) / count for i in range(patches)])
    return [((a + mean) / 2, (math.sqrt(b) + std) / 2) for a, b in zip(local, squares, strict=True)]


def patch_map_within(image):
    """Each patch against the other patches of the same image."""
    result = []
    for i in range(len(image[0])):
        total = 0.0
        for tokens in image:
            total += (1 - max(cosine(tokens[i], t) for j, t in enumerate(tokens) if j != i)) / 2
        result.append(total / len(image))
    return result


def reference_distance(among, prior):
    """Geometric mean of the normal images' own distances (weight K - 1) and the prior (weight 4)."""
    if len(among) == 1:
        return prior
    own = max(sum(among) / len(among), 1e-3)
    weight = len(among) - 1
    return math.exp((weight * math.log(own) + 4 * math.log(prior)) / (weight + 4))


def global_terms(query, normals):
    embeddings = list(normals.global_embedding)
    distance = min((1 - cosine(query.global_embedding, e)) / 2 for e in embeddings)
    among = [min([(1 - cosine(a, b)) / 2 for b in embeddings if b is not a] or [1.0]) for a in embeddings]
    return distance, reference_distance(among, 0.04)


def region_terms(query, normals):
    def distance(a, b):
        values = sorted(((1 - cosine(x, y)) / 2 for x, y in zip(a, b, strict=True)), reverse=True)
        return sum(values[:3]) / 3

    images = [list(normals.regions.tokens[k]) for k in range(len(normals))]
    mine = list(query.regions.tokens)
    among = [min([distance(a, b) for b in images if b is not a] or [1.0]) for a in images]
    return min(distance(mine, image) for image in images), reference_distance(among, 0.16)


def lite_scores(model, query, normals, text):
    """The terms of one query under the InCTRL-lite head, for a map of one row and no augmented copies."""
    head = model.head
    residuals = patch_map(stages_of(query), stages_of(normals))
    z = [(r - m) / (s + 1e-3) for r, (m, s) in zip(residuals, statistics(normals), strict=True)]
    z.sort(reverse=True)
    ranks = [round(len(z) ** (i / 31)) - 1 for i in range(32)]
    ratios = [
        math.log(far + 1e-3) - math.log(usual + 1e-3)
        for far, usual in (global_terms(query, normals), region_terms(query, normals))
    ]
    whole = sigmoid(float(head.whole[0]) * (sum(ratios) / 2 - float(head.whole[1])))
    image = image_score(head, query, normals)
    words = text_score(query, text, math.exp(float(head.log_text_scale)))
    holistic_map = [min(max(z[r], -5), 15) / 10 + image + whole + words for r in ranks]
    holistic = score_head(torch.tensor(holistic_map, dtype=query.global_embedding.dtype), head.holistic)
    training_free = 1 - (1 - sigmoid(z[0] / 4 - 1)) * (1 - whole)
    return {
        "patch": max(residuals),
        "image": image,
        "text": words,
        "holistic_map": holistic_map,
        "holistic": holistic,
        "final": (holistic + training_free) / 2,
    }


def prior_scores(model, query, normals):
    """The terms of one query under the prior head with its usual constants, for stages of one grid."""
    head, (rows, columns) = model.head, query.map_grid
    images = stages_of(normals)

    def mean(values):
        return sum(values) / len(values)

    def raw_score(stages, others):
        """Raw score, mean residual, mean prior."""
        maps = [patch_map([stage], [[image[i]] for image in others]) for i, stage in enumerate(stages)]
        middle = len(stages) // 2
        unit = [token / math.sqrt(float(token @ token)) for token in stages[middle]]
        prior = [float(token @ head.direction) + float(head.offset) for token in unit]
        peak = -math.inf
        for row in range(rows):
            for column in range(columns):
                i = row * columns + column
                on_border = row in (0, rows - 1) or column in (0, columns - 1)
                value = math.log(maps[middle][i]) + 0.15 * (prior[i] - mean(prior)) - 0.2 * on_border
                peak = max(peak, value)
        whole = mean([value for values in maps[middle:] for value in values])
        return peak + 0.5 * math.log(whole), whole, mean(prior)

    level = float(head.level[0])
    if len(images) > 1:
        raws = [raw_score(images[k], images[:k] + images[k + 1 :])[0] for k in range(len(images))]
        level = mean(raws) - 0.22 * math.log2(len(images) / (len(images) - 1))
    raw, whole, prior = raw_score(stages_of(query), images)
    return {"final": sigmoid(4 * (raw - level - 1 / 3)), "whole": whole, "prior": sigmoid(prior)}


# --- InCTRLv2 -----------------------------------------------------------------------------------------


def gelu(x):
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def affine(x, layer):
    rows = zip(layer.weight, layer.bias, strict=True)
    return torch.stack([sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in rows])


def semantic_map(adapter, stages, prototypes):
    """Mean over the stages, on one grid, of the probability of "anomalous" of each adapted patch."""
    result = []
    for i in range(len(stages[0])):
        total = 0.0
        for number, tokens in enumerate(stages):
            down, _, up = adapter.layers[number % len(adapter.layers)]
            hidden = affine(tokens[i], down)
            adapted = affine(torch.stack([hidden.new_tensor(gelu(float(v))) for v in hidden]), up)
            total += sigmoid(100 * (cosine(adapted, prototypes[1]) - cosine(adapted, prototypes[0])))
        result.append(total / len(stages))
    return result


def v2_scores(model, query, normals, text):
    """All terms of one query under InCTRLv2's head; `text` None: learned prototypes and no text score."""
    head = model.head
    residuals = patch_map(stages_of(query), stages_of(normals))
    image = image_score(head, query, normals)
    prototypes, whole, found = head.prototypes if text is None else text, image, {}
    if text is not None:
        found["text"] = text_score(query, text, 100)
        whole = (image + found["text"]) / 2
    dasl = semantic_map(head.discriminative, stages_of(query), prototypes)
    oasl = semantic_map(head.one_class, stages_of(query), prototypes)
    mixed = [0.25 * (r + a) / 2 + 0.75 * (r + o) / 2 for r, a, o in zip(residuals, dasl, oasl, strict=True)]
    return found | {
        "patch_map": residuals,
        "patch": max(residuals),
        "image": image,
        "discriminative_map": dasl,
        "one_class_map": oasl,
        "pixel_map": mixed,
        "final": 0.5 * whole + 0.5 * max(residuals),
    }


def stretched(values, count):
    """A row of values at `count` pixels: linear between the centres of cells, constant beyond them."""
    result = []
    for pixel in range(count):
        at = min(max((pixel + 0.5) * len(values) / count - 0.5, 0), len(values) - 1)
        low = min(int(at), len(values) - 2)
        result.append(values[low] + (at - low) * (values[low + 1] - values[low]))
    return result


def dice(p, mask):
    return 1 - (2 * sum(a * m for a, m in zip(p, mask, strict=True)) + 1) / (sum(p) + sum(mask) + 1)


def focal(p, mask):
    """Mean over the pixels, with gamma = 2."""
    right = [min(max(a if m else 1 - a, 1e-6), 1 - 1e-6) for a, m in zip(p, mask, strict=True)]
    return -sum((1 - q) ** 2 * math.log(q) for q in right) / len(right)


def v2_losses(scores, labels, masks, known):
    """Losses of B queries. Maps and masks are rows: maps of N patches, masks of W pixels."""
    found = {
        "final": sum(focal([s["final"]], [y]) for s, y in zip(scores, labels, strict=True)) / len(labels)
    }
    normal = [not label for label in labels]
    for name, kind, chosen in (("dasl", "discriminative", known), ("oasl", "one_class", normal)):
        rows = [i for i, take in enumerate(chosen) if take]
        values = {"focal": 0.0, "dice": 0.0, "map dice": 0.0}
        for i in rows:
            width, semantic = len(masks[i]), scores[i][f"{kind}_map"]
            averaged = [(r + s) / 2 for r, s in zip(scores[i]["patch_map"], semantic, strict=True)]
            values["focal"] += focal(stretched(semantic, width), masks[i]) / len(rows)
            values["dice"] += dice(stretched(semantic, width), masks[i]) / len(rows)
            values["map dice"] += dice(stretched(averaged, width), masks[i]) / len(rows)
        found |= {f"{name} {key}": value for key, value in values.items()}
    return found
