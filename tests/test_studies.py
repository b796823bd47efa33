"""The studies of benchmarks/: what their tables rest on."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from inctrl_lite.evidence import Evidence
from inctrl_lite.heads import PaperHead

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.exists(), reason="needs the repository's benchmarks/ folder")


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import why_training_falls

    return why_training_falls


@pytest.fixture
def cases(study):
    """Six random categories of three families: 7 normal and 3 anomalous images each."""
    g = torch.Generator().manual_seed(0)
    names = [f"{colour} {family}" for family in ("nut", "tile", "wire mesh") for colour in ("red", "blue")]
    return study.Cases(
        names=names,
        families=[study.family(name) for name in names],
        pool=4,
        residuals=torch.rand(6, 10, 7, 3, 9, generator=g),
        embedding=F.normalize(torch.randn(6, 10, 16, generator=g), dim=-1),
        text=F.normalize(torch.randn(6, 2, 16, generator=g), dim=-1),
        labels=torch.tensor([0.0] * 7 + [1.0] * 3),
    )


def test_the_baseline_of_the_study_is_the_papers_head(study, cases):
    evidence, _ = cases.batch(np.random.default_rng(0), study.BASE)
    heads = []
    for make in (lambda: PaperHead(16, 9), lambda: study.Studied(16, 9, study.BASE)):
        torch.manual_seed(0)
        heads.append(make())
    theirs, ours = (head(evidence) for head in heads)
    for name in ("final", "holistic", "image", "patch"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))


def test_a_pair_shares_category_and_normal_images_and_holds_no_query(study, cases):
    seen = {}

    class Spy(study.Cases):
        def evidence(self, category, query, normals) -> Evidence:
            seen.update(category=category, query=query, normals=normals)
            return super().evidence(category, query, normals)

    spy = Spy(**vars(cases))
    for seed in range(20):
        _, labels = spy.batch(np.random.default_rng(seed), study.replace(study.BASE, pairs=True))
        half = len(labels) // 2
        assert labels.tolist() == [0.0] * half + [1.0] * half
        for one in (seen["category"], seen["normals"]):
            assert torch.equal(one[:half], one[half:])
        assert not (seen["normals"] == seen["query"][:, None]).any()


def test_left_out_families_are_not_learned_from(study, cases):
    for fold in range(study.FOLDS):
        learn, held_out = study.learned_from(cases, fold, None, 0)
        assert not set(learn.families) & set(held_out.families)
        assert len(learn.names) + len(held_out.names) == 6
        few, _ = study.learned_from(cases, fold, 2, 0)
        assert len(set(few.families)) == 2  # fewer categories, but of as many families as possible


def test_aurocs_are_those_of_each_category(study, cases):
    from inctrl_lite.metrics import auroc

    scores = torch.rand(len(cases.names) * study.DRAWS * 6, generator=torch.Generator().manual_seed(1))
    rows = scores.view(6, study.DRAWS, 6).numpy()
    expected = [np.mean([auroc([0, 0, 0, 1, 1, 1], draw) for draw in category]) for category in rows]
    np.testing.assert_allclose(cases.aurocs(scores), expected)


def test_the_interval_over_families_and_seeds_covers(study):
    rng, families, seeds, missed = np.random.default_rng(0), 13, 3, 0
    index = pd.MultiIndex.from_product([range(families), range(seeds)], names=["family", "seed"])
    for _ in range(300):
        value = 0.02 * rng.standard_normal((families, 1)) + 0.01 * rng.standard_normal(seeds)
        value = value + 0.01 * rng.standard_normal((families, seeds))
        _, low, high = study.crossed(pd.DataFrame({"value": value.ravel()}, index).reset_index())
        missed += not low <= 0 <= high
    assert missed <= 24  # 8 %


def test_examples_are_chosen_by_their_distance_from_the_threshold_one_of_a_category(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import examples

    def example(category: str, label: int, score: float) -> examples.Example:
        return examples.Example(category, "scratch", label, score, 0.5, Image.new("RGB", (1, 1)))

    some = [example("a", 1, 0.9), example("a", 1, 0.8), example("b", 1, 0.7), example("b", 1, 0.2)]
    some += [example("c", 1, 0.1), example("c", 0, 0.6), example("a", 0, 0.05), example("b", 0, 0.95)]
    shown = {k: [(e.category, e.score) for e in v] for k, v in examples.chosen(some).items()}
    assert shown == {
        "found": [("a", 0.9), ("b", 0.7)],
        "missed": [("c", 0.1), ("b", 0.2)],
        "false alarm": [("b", 0.95), ("c", 0.6)],
    }
    counts = {"categories": 3, "anomalous": 5, "found": 3, "normal": 3, "false alarm": 2}
    assert examples.counts(some) == counts
