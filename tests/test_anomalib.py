"""PatchCore and PaDiM against anomalib's torch modules on the same features, where anomalib is installed."""

import warnings

import pytest
import torch
from conftest import draw_category

from inctrl_lite.baselines import Images
from inctrl_lite.baselines.gaussian import PaDiM
from inctrl_lite.baselines.patchcore import PatchCore

pytestmark = pytest.mark.filterwarnings("ignore")  # of anomalib's dependencies


@pytest.fixture(scope="module")
def modules():
    """anomalib's PatchCore, and the two parts of its PaDiM."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("patchcore", "padim"):
            pytest.importorskip(
                f"anomalib.models.image.{name}.torch_model",
                reason="anomalib is not installed: an optional test",
            )
        from anomalib.models.components import MultiVariateGaussian
        from anomalib.models.image.padim.anomaly_map import AnomalyMapGenerator
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

        model = PatchcoreModel(layers=["layer1"], backbone="resnet18", pre_trained=False, num_neighbors=9)
    return model, MultiVariateGaussian(), AnomalyMapGenerator()


@pytest.fixture(scope="module")
def images(small_backbone):
    category = draw_category("pcb", train=6, normal=4, anomalous=4)
    return Images(category.train, small_backbone), Images(category.test, small_backbone)


@torch.no_grad()
def test_patchcore_gives_anomalibs_distances_and_scores(modules, images):
    normals, queries = images
    model = modules[0]
    ours = PatchCore()
    answer = ours.fit(normals, "pcb").score(queries)
    tokens = queries.tokens(stages=2, average=3)  # [B, N, C]
    model.memory_bank = ours.bank
    flat = tokens.flatten(0, 1)
    scores, places = model.nearest_neighbors(embedding=flat, n_neighbors=1)
    scores, places = (part.reshape(len(tokens), -1) for part in (scores, places))
    torch.testing.assert_close(answer.maps, scores, atol=1e-3, rtol=1e-4)
    expected = model.compute_anomaly_score(scores, places, flat)
    torch.testing.assert_close(answer.scores, expected, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_padim_gives_anomalibs_distances(modules, images):
    _, gaussian, maps = modules
    normals, queries = images
    ours = PaDiM(dimensions=20)
    answer = ours.fit(normals, "pcb").score(queries)

    def embedding(of: Images) -> torch.Tensor:
        return ours._chosen(of).transpose(1, 2).unflatten(2, of.features.map_grid)  # [B, d, h, w]

    statistics = gaussian.fit(embedding(normals))
    expected = maps.compute_distance(embedding(queries), statistics).flatten(1)
    torch.testing.assert_close(answer.maps, expected, atol=1e-3, rtol=1e-3)
