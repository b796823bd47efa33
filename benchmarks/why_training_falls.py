"""Why does the paper's head lose when it is trained here? python benchmarks/why_training_falls.py

InCTRL's own head is trained on the drawn auxiliary world, on frozen features of the tiny CLIP, and tested on
families of things that it has not seen. Its AUROC there falls below that of the untrained head. One factor of
the training is changed at a time, all others stay as in the baseline. Three folds leave out every family
once: each setting is trained three times, with other weights, other episodes and other families. The baseline
and some candidates for a better training are trained nine times, from three seeds in each fold.

Tested on the categories that are learned from, on the left-out families, and on left-out worlds (scans,
panels and photographs of benchmarks/choose_whole.py). These are development sets: no evaluation world and no
real data set has a part in this.

Residuals of every image to every normal image of its category are computed once; an episode is then a minimum
over K of them. They and the finished runs are kept in --cache, and the script goes on where it was. Writes
benchmarks/results/why_training_falls.{csv,json,png}. About 25 minutes on one quiet core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from choose_head import FOLDS, tabulate
from choose_whole import PANEL_DEFECTS, PHOTOGRAPHS, damaged, panel, scans
from matplotlib.figure import Figure
from numpy.random import Generator, default_rng
from quality import ROOT, fill
from record import RESULTS, narrow, save_figure, with_interval
from scipy.stats import rankdata, t
from torch import Tensor, nn
from tqdm.auto import tqdm

from inctrl_lite import load_backbone
from inctrl_lite.backbones import Backbone
from inctrl_lite.data.category import Category
from inctrl_lite.data.defects import DEFECTS
from inctrl_lite.data.worlds import AUXILIARY, load_world
from inctrl_lite.environment import environment
from inctrl_lite.evidence import Evidence, Scores
from inctrl_lite.files import write_text
from inctrl_lite.heads import PaperHead, fuse
from inctrl_lite.losses import focal_loss
from inctrl_lite.residual import global_distance, image_residual, text_cosines, text_score
from inctrl_lite.tiny.corpus import photographed

CACHE = Path("runs/why_training_falls")
TRAIN, NORMAL, ANOMALOUS = 12, 16, 20  # images a category: to draw from, test normals, test anomalies
SHOTS, DRAWS, SEEDS = 4, 3, 3
STEPS = (0, 50, 100, 200, 400, 800)
LEARNED, HELD_OUT, WORLDS = "learned from", "left-out families", "left-out worlds"


@dataclass(frozen=True)
class Setting:
    """One training. The defaults are the baseline, the public code's choices.

    Attributes:
        norm: BatchNorm: "batch" (its own statistics), "frozen" (statistics of 50 batches before the first
            step), "removed", or "test batch" (also in the test, the statistics of the category that is
            tested).
        categories: how many are learned from; None: all of the families that are not left out.
        sigmoids: how many the loss sees, 1 or 2.
        pairs: not the focal loss, but one that compares: every anomalous query with a normal query of the
            same category that has the same normal images.
        rate, decay: learning rate and weight decay of AdamW.
        batch: queries in a step.
        one_category: all queries of a batch are of one category.
        positions: order in which phi reads the patch residuals: "fixed" (as in the image), "sorted", or
            "shuffled" (anew for each training query).
        trained: parts that are trained, or None: all.
        terms: what the holistic map is made of.
        scale: factor of the patch residuals in phi.
        from_zero: the last layer of phi starts at zero, so that the run starts from patch max.
        numbers: not the paper's head, but log patch max plus a linear function of these; starts at log patch
            max.
    """

    norm: str = "batch"
    categories: int | None = 13
    sigmoids: int = 2
    pairs: bool = False
    rate: float = 1e-3
    decay: float = 0.01
    batch: int = 16
    one_category: bool = False
    positions: str = "fixed"
    trained: tuple[str, ...] | None = None
    terms: tuple[str, ...] = ("text", "image", "patch")
    scale: float = 1.0
    from_zero: bool = False
    numbers: tuple[str, ...] = ()


BASE = Setting()
FACTORS: dict[str, dict[str, Setting]] = {
    "baseline": {"the public code's choices, 13 categories": BASE},
    "BatchNorm": {
        "statistics frozen before the first step": replace(BASE, norm="frozen"),
        "statistics of the test batch": replace(BASE, norm="test batch"),
        "removed": replace(BASE, norm="removed"),
    },
    "categories": {
        "4": replace(BASE, categories=4),
        "26": replace(BASE, categories=26),
        "all (32 to 36)": replace(BASE, categories=None),
    },
    "loss": {
        "one sigmoid": replace(BASE, sigmoids=1),
        "pairs of one category": replace(BASE, pairs=True),
    },
    "learning rate": {"0.0001": replace(BASE, rate=1e-4), "0.01": replace(BASE, rate=1e-2)},
    "batch": {
        "one category a batch": replace(BASE, one_category=True),
        "48 queries instead of 16": replace(BASE, batch=48),
    },
    "order of residuals in phi": {
        "sorted": replace(BASE, positions="sorted"),
        "shuffled": replace(BASE, positions="shuffled"),
    },
    "weight decay": {"0.5 instead of 0.01": replace(BASE, decay=0.5)},
    "trained part": {
        "adapter and eta (image score)": replace(BASE, trained=("adapter", "image")),
        "phi": replace(BASE, trained=("holistic",)),
        "the weight of phi against patch max": replace(BASE, trained=("weight",)),
    },
    "terms in phi": {
        "without the image score": replace(BASE, terms=("text", "patch")),
        "without the text score": replace(BASE, terms=("image", "patch")),
        "patch residuals times 10": replace(BASE, scale=10.0),
    },
    "start of phi": {"at zero, from patch max": replace(BASE, from_zero=True)},
}
REPAIRED = Setting("removed", None, 1, rate=1e-4, batch=48, positions="sorted", from_zero=True)
LINEAR = Setting("removed", None, 1, rate=1e-2, batch=48)
FOUR = ("text", "whole", "top", "mean")
CANDIDATES = {
    "paper's head, repaired": REPAIRED,
    "paper's head, repaired, pairs": replace(REPAIRED, pairs=True),
    "paper's head, repaired, pairs, without the image score": replace(
        REPAIRED, pairs=True, terms=("text", "patch")
    ),
    "linear: 4 numbers": replace(LINEAR, numbers=FOUR),
    "linear: 4 numbers, pairs": replace(LINEAR, numbers=FOUR, pairs=True),
    "linear: text and whole image, pairs": replace(LINEAR, numbers=("text", "whole"), pairs=True),
    "linear: 4 numbers and stages, pairs": replace(LINEAR, numbers=(*FOUR, "stages"), pairs=True),
    "linear: maxima of the stages, pairs": replace(LINEAR, numbers=("stages",), pairs=True),
    "linear: embedding": replace(LINEAR, numbers=("embedding",), rate=1e-3),
    "linear: embedding, pairs": replace(LINEAR, numbers=("embedding",), rate=1e-3, pairs=True),
    "linear: 4 numbers, stages and embedding, pairs": replace(
        LINEAR, numbers=(*FOUR, "stages", "embedding"), rate=1e-3, pairs=True
    ),
}
BASELINE = "the public code's choices, 13 categories"
# Trained from `SEEDS` seeds in each fold, the others from one.
AGAIN = (
    BASELINE,
    "paper's head, repaired",
    "linear: 4 numbers, pairs",
    "linear: 4 numbers and stages, pairs",
)


# --- data --------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Cases:
    """C categories of one world, with equally many images each; the first ones are normal.

    Attributes:
        names: of the categories.
        families: what kind of thing each shows.
        pool: from how many of the normal images test support sets are drawn.
        residuals: of n images to the m normal ones [C, n, m, L, N].
        embedding: [C, n, D].
        text: prototypes [C, 2, D].
        labels: [n].
    """

    names: list[str]
    families: list[str]
    pool: int
    residuals: Tensor
    embedding: Tensor
    text: Tensor
    labels: Tensor

    def take(self, rows: Sequence[int]) -> Cases:
        """Some of the categories."""
        chosen = list(rows)
        tensors = self.residuals[chosen], self.embedding[chosen], self.text[chosen]
        names, families = ([values[i] for i in chosen] for values in (self.names, self.families))
        return Cases(names, families, self.pool, *tensors, self.labels)

    def evidence(self, category: Tensor, query: Tensor, normals: Tensor) -> Evidence:
        """Evidence of B queries: numbers of their categories [B], images [B] and normal images [B, K]."""
        c, q = category[:, None], query[:, None]
        maps = self.residuals[c, q, normals].amin(1)  # [B, L, N]
        query_embedding, support = self.embedding[category, query], self.embedding[c, normals]
        distance, reference = global_distance(query_embedding, support)
        return Evidence(
            maps,
            maps.mean(1),
            query_embedding,
            support,
            distance,
            reference,
            text_cosines=text_cosines(query_embedding, self.text[category]),
        )

    def batch(self, rng: Generator, setting: Setting) -> tuple[Evidence, Tensor]:
        """Half normal, half anomalous queries, each with normal images of its own that do not hold it."""
        (count, images, normal), half = self.residuals.shape[:3], setting.batch // 2
        category = rng.integers(count, size=2 * half)
        query = np.r_[rng.integers(normal, size=half), rng.integers(normal, images, size=half)]
        order = rng.random((2 * half, normal))
        order[np.arange(half), query[:half]] = 2.0  # a query is never its own normal image
        if setting.one_category:
            category[:] = category[0]
        if setting.pairs:
            category[half:], order[half:] = category[:half], order[:half]
        normals = order.argsort(1)[:, :SHOTS]
        found = self.evidence(*map(torch.from_numpy, (category, query, normals)))
        return found, self.labels[torch.from_numpy(query)]

    def tests(self) -> Evidence:
        """Evidence of all test images of all categories with `DRAWS` support sets, [C * DRAWS * queries]."""
        queries = torch.arange(self.pool, len(self.labels))
        rows = []
        for number in range(len(self.names)):
            for draw in range(DRAWS):
                generator = torch.Generator().manual_seed(draw)
                normals = torch.randperm(self.pool, generator=generator)[:SHOTS]
                category = torch.full((len(queries),), number)
                rows.append(self.evidence(category, queries, normals.expand(len(queries), -1)))
        return Evidence.cat(rows)

    def aurocs(self, scores: Tensor) -> np.ndarray:
        """AUROC of each category, mean over the draws, of scores in the order of `tests`."""
        labels = self.labels[self.pool :].numpy() == 1
        ranks = rankdata(scores.numpy().reshape(len(self.names), DRAWS, -1), axis=-1)
        positive, negative = labels.sum(), (~labels).sum()
        above = ranks[..., labels].sum(-1) - positive * (positive + 1) / 2
        return (above / (positive * negative)).mean(1)


def cases(backbone: Backbone, categories: Sequence[Category], title: str, path: Path) -> Cases:
    """The categories with everything that is frozen, computed once."""
    if not path.exists():
        tables = [tabulate(backbone, category) for category in tqdm(categories, title)]
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            "residuals": torch.stack([table.residuals for table in tables]),
            "embedding": torch.stack([table.features.global_embedding for table in tables]),
            "text": torch.stack([table.text for table in tables]),
        }
        torch.save(tensors | {"labels": tables[0].labels}, path)
    found = torch.load(path, weights_only=True)
    names = [category.name for category in categories]
    families = [family(name) for name in names]
    residuals = found["residuals"].float()
    tensors = residuals, found["embedding"], found["text"], found["labels"]
    return Cases(names, families, len(categories[0].train), *tensors)


def family(name: str) -> str:
    """The family of a drawn category ("brass wire mesh" -> "wire mesh"); others stand for themselves."""
    return name if name.split()[-1].isdigit() else name.partition(" ")[2]


def left_out_worlds() -> list[Category]:
    """Scans, panels and photographs, sound and damaged; their text prompts know the kind alone."""
    panels = [panel(default_rng([33, n])) for n in range(10)]
    photographs = [photographed(default_rng([31, n]), (PHOTOGRAPHS[n % 5],)) for n in range(15)]
    found = [*scans(), *damaged(panels, PANEL_DEFECTS, True), *damaged(photographs, tuple(DEFECTS), False)]
    return found


def learned_from(everything: Cases, fold: int, count: int | None, seed: int) -> tuple[Cases, Cases]:
    """The categories of a fold to learn from, and those of the families that it leaves out.

    Fewer categories are of as many families as possible, in an order that the seed shuffles.
    """
    out = set(sorted(set(everything.families))[fold::FOLDS])
    rng = default_rng([seed, fold])
    order = rng.permutation([i for i, name in enumerate(everything.families) if name not in out])
    seen: dict[str, int] = {}
    rank = {}
    for i in order:
        rank[i] = seen[everything.families[i]] = seen.get(everything.families[i], -1) + 1
    chosen = sorted(order, key=lambda i: rank[i])[:count]
    held_out = [i for i, name in enumerate(everything.families) if name in out]
    return everything.take(chosen), everything.take(held_out)


# --- heads -------------------------------------------------------------------------------------------


class Studied(PaperHead):
    """The paper's head with one thing or another changed; with the baseline's setting it is that head."""

    def __init__(self, width: int, patches: int, setting: Setting):
        super().__init__(width, patches, setting.terms)
        self.setting = setting
        self.weight = nn.Parameter(torch.tensor(0.5))  # of phi; patch max has the rest
        for part in (self.image, self.holistic) if setting.norm == "removed" else ():
            part.norm1, part.norm2 = nn.Identity(), nn.Identity()
        if setting.from_zero:
            nn.init.zeros_(self.holistic.layer3.weight)
            nn.init.zeros_(self.holistic.layer3.bias)
        for name, parameter in self.named_parameters():
            part = name.partition(".")[0]
            parameter.requires_grad_(part in setting.trained if setting.trained else part != "weight")

    def forward(self, evidence: Evidence) -> Scores:
        setting, maps = self.setting, evidence.patch_map
        adapted = self.adapter(evidence.query_embedding), self.adapter(evidence.support_embedding)
        image, text = self.image(image_residual(*adapted)), text_score(evidence.text_cosines)
        patch = maps.amax(-1)
        if setting.positions == "sorted":
            maps = maps.sort(-1).values
        if setting.positions == "shuffled" and self.training:
            maps = maps.gather(1, torch.rand_like(maps).argsort(1))
        holistic = self.holistic(fuse(self.terms, setting.scale * maps, image, text))
        final = self.weight * holistic + (1 - self.weight) * patch
        return Scores(final, evidence.patch_map, patch, holistic, image, text)


class FromPatchMax(nn.Module):
    """Log patch max plus a linear function of a few numbers, which starts at zero."""

    def __init__(self, width: int, setting: Setting):
        super().__init__()
        self.setting = setting
        inputs = sum({"embedding": width, "stages": 3}.get(name, 1) for name in setting.numbers)
        self.linear = nn.Linear(inputs, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.norm = nn.BatchNorm1d(1 + inputs, affine=False)  # frozen before the first step

    def numbers(self, evidence: Evidence) -> Tensor:
        """[B, 1 + inputs], log patch max first."""
        cosines, maps = evidence.text_cosines, evidence.patch_map
        known = {
            "text": (cosines[:, 1] - cosines[:, 0])[:, None],
            "whole": (evidence.global_distance.log() - evidence.global_reference.log())[:, None],
            "top": maps.topk(8, 1).values.mean(1, keepdim=True).log(),
            "mean": maps.mean(1, keepdim=True).log(),
            "stages": evidence.stage_maps.amax(-1).log(),
            "embedding": nn.functional.normalize(evidence.query_embedding, dim=-1),
        }
        patch = maps.amax(-1, keepdim=True).log()
        return torch.cat([patch, *(known[name] for name in self.setting.numbers)], 1)

    def forward(self, evidence: Evidence) -> Scores:
        x = self.norm(self.numbers(evidence))
        final = (x[:, 0] + self.linear(x[:, 1:])[:, 0]).sigmoid()
        return Scores(final, evidence.patch_map, evidence.patch_map.amax(-1))


def new_head(cases: Cases, setting: Setting, seed: int) -> nn.Module:
    """An untrained head; BatchNorm that stays frozen has seen 50 batches."""
    torch.manual_seed(seed)
    width, patches = cases.embedding.shape[-1], cases.residuals.shape[-1]
    head = FromPatchMax(width, setting) if setting.numbers else Studied(width, patches, setting)
    if setting.norm == "frozen" or setting.numbers:
        rng = default_rng([seed, 1])
        norms = [part for part in head.modules() if isinstance(part, nn.BatchNorm1d)]
        for part in norms:
            part.momentum = None  # plain mean over the batches
        with torch.no_grad():
            for _ in range(50):
                head.train()(cases.batch(rng, setting)[0])
    return head.eval()


# --- training and testing ----------------------------------------------------------------------------


def training(cases: Cases, setting: Setting, seed: int, steps: Sequence[int] = STEPS) -> Iterator[nn.Module]:
    """The head in eval mode, before the training and at each of `steps` that follow."""
    head, rng = new_head(cases, setting, seed), default_rng([seed, 2])
    learned = [parameter for parameter in head.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learned, setting.rate, weight_decay=setting.decay)
    if 0 in steps:
        yield head
    for step in range(1, max(steps) + 1):
        head.train()
        for part in head.modules():
            if isinstance(part, nn.BatchNorm1d) and (setting.norm == "frozen" or setting.numbers):
                part.eval()
        evidence, labels = cases.batch(rng, setting)
        scores = head(evidence)
        loss = sum(
            compared(values) if setting.pairs else focal_loss(values, labels, 2.0, setting.sigmoids == 2)
            for values in (scores.final, scores.image)
            if values is not None
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step in steps:
            yield head.eval()


def compared(scores: Tensor) -> Tensor:
    """Loss of pairs [2 B]: small where the anomalous half has larger logits than the normal half."""
    normal, anomalous = scores.clamp(1e-6, 1 - 1e-6).logit().chunk(2)
    return nn.functional.softplus(normal - anomalous).mean()


@torch.no_grad()
def measure(head: nn.Module, sets: dict[str, tuple[Cases, Evidence]], setting: Setting) -> pd.DataFrame:
    """AUROC of each category of each set: of the final score, and of its terms."""
    rows = []
    for title, (cases, evidence) in sets.items():
        if setting.norm == "test batch":
            parts = len(cases.names) * DRAWS
            size = len(evidence.patch_map) // parts
            head.train()
            for part in head.modules():
                if isinstance(part, nn.BatchNorm1d):
                    part.momentum = 0.0  # the running statistics stay as they are
            scores = Scores.cat([head(evidence[i * size : (i + 1) * size]) for i in range(parts)])
            for part in head.modules():
                if isinstance(part, nn.BatchNorm1d):
                    part.momentum = 0.1
            head.eval()
        else:
            scores = head(evidence)
        ranked = {"final": scores.final, "phi": scores.holistic, "image score": scores.image}
        for term, values in ranked.items():
            if values is not None:
                for i, value in enumerate(cases.aurocs(values)):
                    rows.append([title, term, cases.names[i], cases.families[i], value])
    return pd.DataFrame(rows, columns=["tested on", "term", "category", "family", "auroc"])


def run(
    everything: Cases, worlds: tuple[Cases, Evidence], setting: Setting, fold: int, seed: int, cache: Path
) -> pd.DataFrame:
    """One training: AUROC by step, set, term and category."""
    name = blake2b(repr((asdict(setting), fold, seed)).encode(), digest_size=8).hexdigest()
    path = cache / "runs" / f"{name}.csv"
    if not path.exists():
        learn, held_out = learned_from(everything, fold, setting.categories, seed)
        sets = {LEARNED: (learn, learn.tests()), HELD_OUT: (held_out, held_out.tests()), WORLDS: worlds}
        heads = training(learn, setting, 100 * fold + seed)
        found = [measure(head, sets, setting).assign(steps=s) for s, head in zip(STEPS, heads, strict=True)]
        write_text(path, pd.concat(found).to_csv(index=False))
    return pd.read_csv(path).assign(fold=fold, seed=seed)


def untrained(cases: Cases, evidence: Evidence, title: str, scale: Evidence) -> pd.DataFrame:
    """AUROC of what needs no training; sums are of numbers divided by their spread in `scale`."""
    width = cases.embedding.shape[-1]
    head = FromPatchMax(width, replace(LINEAR, numbers=(*FOUR, "stages")))
    numbers = head.numbers(evidence) / head.numbers(scale).std(0)
    patch, rest = numbers[:, 0], dict(zip(FOUR, numbers[:, 1:5].T, strict=True))
    ranked = {
        "patch max": patch,
        "text score": rest["text"],
        "log patch max + text, equal weights": patch + rest["text"],
        "log patch max + text + whole image, equal weights": patch + rest["text"] + rest["whole"],
        "log patch max + 4 numbers, equal weights": numbers[:, :5].sum(1),
        "log patch max + maxima of the stages, equal weights": patch + numbers[:, 5:].sum(1),
    }
    rows = [
        [title, name, cases.names[i], cases.families[i], value]
        for name, scores in ranked.items()
        for i, value in enumerate(cases.aurocs(scores))
    ]
    return pd.DataFrame(rows, columns=["tested on", "setting", "category", "family", "auroc"])


# --- what was found ----------------------------------------------------------------------------------


def all_runs(cache: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every training of every setting, and what needs no training."""
    torch.set_num_threads(1)
    backbone = load_backbone("tiny")
    auxiliary = load_world(AUXILIARY, train=TRAIN, normal=NORMAL, anomalous=ANOMALOUS)
    everything = cases(backbone, auxiliary, "auxiliary world", cache / "auxiliary.pt")
    worlds = cases(backbone, left_out_worlds(), "left-out worlds", cache / "worlds.pt")
    of_worlds = worlds, worlds.tests()
    settings = {(f, name): setting for f, group in FACTORS.items() for name, setting in group.items()}
    settings |= {("candidates", name): setting for name, setting in CANDIDATES.items()}
    found = []
    jobs = [(key, 0) for key in settings]
    jobs += [(key, seed) for seed in range(1, SEEDS) for key in settings if key[1] in AGAIN]
    for (factor, name), seed in tqdm(jobs, "settings"):
        for fold in range(FOLDS):
            table = run(everything, of_worlds, settings[factor, name], fold, seed, cache)
            found.append(table.assign(factor=factor, setting=name))
    tests = everything.tests()
    plain = [untrained(everything, tests, HELD_OUT, tests), untrained(*of_worlds, WORLDS, tests)]
    return pd.concat(found), pd.concat(plain)


def stopped_early(runs: pd.DataFrame) -> pd.DataFrame:
    """The baseline, stopped at the step that is best for the *other* left-out families of the same run."""
    chosen = []
    mine = runs[(runs["setting"] == BASELINE) & (runs["tested on"] == HELD_OUT) & (runs["term"] == "final")]
    for _, table in mine.groupby(["fold", "seed"]):
        by_family = table.pivot_table("auroc", "steps", "family")
        for name, rows in table.groupby("family"):
            best = by_family.drop(columns=name).mean(axis=1).idxmax()
            chosen += [rows[rows["steps"] == 0], rows[rows["steps"] == best].assign(steps=max(STEPS))]
    named = {"factor": "stopping", "setting": "at the best step of other left-out families"}
    return pd.concat(chosen).drop_duplicates().assign(**named)


def crossed(values: pd.DataFrame, level: float = 0.95) -> tuple[float, float, float]:
    """Mean over families and its interval over families and seeds, both of which are drawn at random.

    Args:
        values: columns "family", "seed", "value"; a seed trains every fold anew.

    The variance has a part for families and one for seeds, less what both share; quantiles of Student's t
    with Satterthwaite's degrees of freedom, as in `metrics.auroc_interval`.
    """
    grid = values.pivot_table("value", "seed", "family").to_numpy()  # [S, F]
    seeds, families = grid.shape
    parts = [(grid.mean(0).var(ddof=1) / families, families - 1)]
    if seeds > 1:
        parts.append((grid.mean(1).var(ddof=1) / seeds, seeds - 1))
    rest = grid - grid.mean(0) - grid.mean(1, keepdims=True) + grid.mean()
    shared = rest.var() / grid.size if seeds > 1 else 0.0
    variance = max(sum(part for part, _ in parts) - shared, parts[0][0])
    doubt = sum(part**2 / freedom for part, freedom in parts)
    half = float(t.ppf((1 + level) / 2, variance**2 / doubt) * np.sqrt(variance)) if doubt else 0.0
    return float(grid.mean()), float(grid.mean()) - half, float(grid.mean()) + half


def summary(runs: pd.DataFrame, plain: pd.DataFrame) -> pd.DataFrame:
    """AUROC by setting, set, term and step, and its change against step 0 and against patch max."""
    place = ["tested on", "category"]
    patch_max = plain[plain["setting"] == "patch max"]
    drawn = patch_max[patch_max["tested on"] == HELD_OUT].assign(**{"tested on": LEARNED})
    patch_max = pd.concat([patch_max, drawn]).set_index(place)["auroc"].rename("patch max")
    runs = pd.concat([runs, stopped_early(runs)]).join(patch_max, on=place)
    keys = ["factor", "setting", "term", *place, "fold", "seed"]
    first = runs[runs["steps"] == 0].set_index(keys)["auroc"].rename("first")
    runs = runs.join(first, on=keys)
    rows = []
    for key, part in runs.groupby(["factor", "setting", "tested on", "term", "steps"], sort=False):
        row = [*key, part["seed"].nunique(), crossed(part.assign(value=part["auroc"]))[0]]
        row += crossed(part.assign(value=part["auroc"] - part["first"]))
        row += crossed(part.assign(value=part["auroc"] - part["patch max"]))
        rows.append(row)
    columns = ["factor", "setting", "tested on", "term", "steps", "seeds", "auroc"]
    columns += ["change", "low", "high", "over patch max", "over low", "over high"]
    table = pd.DataFrame(rows, columns=columns)
    for (title, name), part in plain.groupby(["tested on", "setting"], sort=False):
        row = {"factor": "no training", "setting": name, "tested on": title, "term": "final", "steps": 0}
        value = crossed(part.assign(value=part["auroc"], seed=0))[0]
        table = pd.concat([table, pd.DataFrame([row | {"seeds": 1, "auroc": value}])])
    return table.round(4)


# --- figure and texts --------------------------------------------------------------------------------


def at(table: pd.DataFrame, setting: str, tested: str = HELD_OUT, steps: int = STEPS[-1]) -> pd.Series:
    """The row of one setting's final score."""
    rows = table[(table["setting"] == setting) & (table["tested on"] == tested) & (table["term"] == "final")]
    return rows[rows["steps"] == steps].iloc[0]


def best(table: pd.DataFrame) -> str:
    """The candidate whose AUROC on the left-out families is largest after the last step."""
    return max(CANDIDATES, key=lambda name: at(table, name)["auroc"])


def figure(table: pd.DataFrame) -> Figure:
    """Left: AUROC against steps, baseline and best candidate. Right: every setting against patch max."""
    drawn = Figure(figsize=(10, 9.5), layout="constrained")
    left, right = drawn.subplots(1, 2, width_ratios=(1, 1.2))
    colours = dict(zip((LEARNED, HELD_OUT, WORLDS), ("#0072B2", "#D55E00", "#009E73"), strict=True))
    places = np.arange(len(STEPS))
    for setting, style in ((BASELINE, "-"), (best(table), "--")):
        for tested, colour in colours.items():
            line = [at(table, setting, tested, steps)["auroc"] for steps in STEPS]
            label = f"{'baseline' if setting == BASELINE else 'best candidate'}: {tested}"
            left.plot(places, line, style, color=colour, marker="o", label=label)
    left.set_xticks(places, [str(steps) for steps in STEPS])
    left.set(xlabel="training steps", ylabel="mean AUROC", title="Two trainings")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.07), frameon=False)
    y, ticks, names = 0.0, [], []
    last = table[(table["term"] == "final") & (table["steps"] == STEPS[-1])]
    for factor, part in last.groupby("factor", sort=False):
        if factor == "no training":
            continue
        for setting in part["setting"].unique():
            for tested, colour in colours.items():
                found = part[(part["setting"] == setting) & (part["tested on"] == tested)]
                if len(found):
                    row, shift = found.iloc[0], 0.22 * (list(colours).index(tested) - 1)
                    value = row["over patch max"]
                    ends = [[value - row["over low"]], [row["over high"] - value]]
                    right.errorbar(value, y + shift, xerr=ends, color=colour, fmt="o", ms=4, lw=1)
            ticks.append(y)
            names.append(setting if factor == "candidates" else f"{factor}: {setting}")
            y += 1
        y += 0.5
    right.axvline(0, color="grey", lw=1)
    right.set_yticks(ticks, names, fontsize=8)
    right.set_ylim(y, -1)
    right.set(xlabel=f"AUROC after {STEPS[-1]} steps minus patch max", title="One factor at a time")
    return drawn


def answer(table: pd.DataFrame) -> str:
    """What was found, in sentences."""
    sets = (LEARNED, HELD_OUT, WORLDS)
    place = {name: [at(table, BASELINE, name, steps)["auroc"] for steps in STEPS] for name in sets}
    phi = table[(table["setting"] == BASELINE) & (table["tested on"] == HELD_OUT) & (table["term"] == "phi")]
    phi = phi[phi["steps"] == STEPS[-1]].iloc[0]["auroc"]
    changed = [(factor, name) for factor in list(FACTORS)[1:] for name in FACTORS[factor]]
    fall = [": ".join(key) for key in changed if at(table, key[1])["over high"] < 0]
    rise = [": ".join(key) for key in changed if at(table, key[1])["over low"] > 0]
    names = [name for name in CANDIDATES if at(table, name)["over low"] > 0]
    patch_max, first = at(table, "patch max", steps=0)["auroc"], best(table)
    lines = [
        "The baseline learns from 13 categories. On the left-out families its AUROC is "
        f"{place[HELD_OUT][0]:.3f} before the first step, {min(place[HELD_OUT]):.3f} at its lowest and "
        f"{place[HELD_OUT][-1]:.3f} after {STEPS[-1]} steps. On the left-out worlds it goes from "
        f"{place[WORLDS][0]:.3f} to {place[WORLDS][-1]:.3f}. On the categories that it learns from, it goes "
        f"from {place[LEARNED][0]:.3f} to {place[LEARNED][-1]:.3f}.",
        "After the training, phi alone ranks the images of left-out families with an AUROC of "
        f"{phi:.3f}. Patch max, which is the other half of the score and learns nothing, has "
        f"{patch_max:.3f}.",
        f"Of {len(changed)} single changes, {len(rise)} end above patch max on the left-out families with an "
        f"interval above 0, and {len(fall)} end below it with an interval below 0"
        + (f" ({'; '.join(fall)})." if fall else "."),
        f"Of {len(CANDIDATES)} trainings that were built from these findings, {len(names)} end above patch "
        "max with an interval above 0" + (f" ({'; '.join(names)})." if names else "."),
        f'The best of them on the left-out families is "{first}": {cell(at(table, first))} over patch max '
        f"there, and {cell(at(table, first, WORLDS))} on the left-out worlds, which had no part in calling "
        "it the best.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def cell(row: pd.Series) -> str:
    """AUROC minus that of patch max, with its interval."""
    return with_interval(row["over patch max"], row["over low"], row["over high"], "+")


def factor_table(table: pd.DataFrame) -> str:
    """AUROC after the last step minus that of patch max, one setting a row."""
    head = ["what is changed", "to", LEARNED, HELD_OUT, WORLDS]
    lines, last = [head, ["---"] * 5], table[table["steps"] == STEPS[-1]]
    for factor in [*FACTORS, "stopping"]:
        for setting in last[last["factor"] == factor]["setting"].unique():
            found = last[(last["factor"] == factor) & (last["setting"] == setting)]
            cells = {row["tested on"]: cell(row) for _, row in found[found["term"] == "final"].iterrows()}
            lines.append([factor, setting, *(cells.get(name, "") for name in (LEARNED, HELD_OUT, WORLDS))])
    return narrow("\n".join("| " + " | ".join(line) + " |" for line in lines))


def candidate_table(table: pd.DataFrame) -> str:
    """Trainings that start from patch max, and sums that nobody trained."""
    lines = [
        ["", *(f"{name}: {what}" for name in (HELD_OUT, WORLDS) for what in ("AUROC", "over patch max"))]
    ]
    lines.append(["---"] * 5)
    plain = table[table["factor"] == "no training"]
    for setting in plain["setting"].unique():
        own = plain[plain["setting"] == setting].set_index("tested on")["auroc"]
        lines.append([f"not trained: {setting}", f"{own[HELD_OUT]:.3f}", "", f"{own[WORLDS]:.3f}", ""])
    for setting in [BASELINE, *CANDIDATES]:
        found = [at(table, setting, tested) for tested in (HELD_OUT, WORLDS)]
        cells = [[f"{r['auroc']:.3f}", cell(r)] for r in found]
        lines.append([setting, *cells[0], *cells[1]])
    return narrow("\n".join("| " + " | ".join(line) + " |" for line in lines))


def read() -> pd.DataFrame:
    return pd.read_csv(RESULTS / "why_training_falls.csv")


def blocks() -> dict[Path, dict[str, str]]:
    """What stands between marks in texts, as in `quality.blocks`."""
    table = read()
    factors = factor_table(table)
    marks = {"answer": answer(table), "factors": factors, "candidates": candidate_table(table)}
    return {
        ROOT / "book" / "why_training_falls.md": marks,
        ROOT / "notebooks" / "07_training.ipynb": {"factors": factors},
    }


def filled(path: Path, marks: dict[str, str]) -> str:
    """The text of a file with its blocks filled; of a notebook, in those cells that hold a block."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return fill(text, marks)
    notebook = json.loads(text)
    for one in notebook["cells"]:
        source = "".join(one["source"])
        own = {mark: inside for mark, inside in marks.items() if f"<!-- {mark} -->" in source}
        one["source"] = fill(source, own).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--only", action="store_true", help="write figure and texts from the recorded table")
    options = parser.parse_args()
    if not options.only:
        table = summary(*all_runs(options.cache))
        write_text(RESULTS / "why_training_falls.csv", table.to_csv(index=False))
        facts = {"environment": environment(), "images": [TRAIN, NORMAL, ANOMALOUS], "K": SHOTS}
        write_text(RESULTS / "why_training_falls.json", json.dumps(facts, indent=2) + "\n")
    table = read()
    save_figure(figure(table), RESULTS / "why_training_falls.png")
    for path, marks in blocks().items():
        write_text(path, filled(path, marks))


if __name__ == "__main__":
    main()
