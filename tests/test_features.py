"""The feature store: right numbers, nothing stale, nothing damaged."""

import multiprocessing
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from inctrl_lite.backbone import VIEWS, Backbone
from inctrl_lite.data.category import Item
from inctrl_lite.errors import InctrlError
from inctrl_lite.features import (
    FeatureStore,
    ViewStore,
    backbone_fingerprint,
    cache_folder,
    encode_items,
    encode_views,
)


@pytest.fixture
def items(small_categories):
    return small_categories[0].test[:6]


@pytest.fixture
def store(small_backbone, tmp_path):
    return FeatureStore(small_backbone, tmp_path)


def count_encoded(store, monkeypatch) -> list[int]:
    """Records how many images go through the backbone from now on."""
    sizes, encode = [], type(store.backbone).encode_image

    def counted(backbone, images):
        sizes.append(len(images))
        return encode(backbone, images)

    monkeypatch.setattr(type(store.backbone), "encode_image", counted)
    return sizes


def test_stored_features_are_the_backbones(store, items):
    store.encode(items, progress=False)
    found, expected = store.load(items), encode_items(store.backbone, items)
    assert found.cls.dtype == torch.float32
    torch.testing.assert_close(found.cls, expected.cls, rtol=1e-3, atol=1e-3)
    for one, other in ((found.patches, expected.patches), (found.places, expected.places)):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_stored_views_are_the_backbones_and_lie_apart(store, items):
    views = ViewStore(store)
    found, expected = views.load(items), encode_views(store.backbone, items)
    for one, other in zip(vars(found).values(), vars(expected).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert len(found) == len(items) * len(VIEWS)
    alone = encode_items(store.backbone, items).patches.repeat_interleave(len(VIEWS), 0)
    assert (found.patches - alone).abs().amax((1, 2, 3)).min() > 0.01  # each is another picture
    assert views.path(items[0]) != store.path(items[0])


def test_float32_is_stored_exactly_and_apart(small_backbone, items, tmp_path):
    half, full = (FeatureStore(small_backbone, tmp_path, dtype) for dtype in (torch.float16, torch.float32))
    half.encode(items, progress=False)
    expected = encode_items(small_backbone, items)
    assert torch.equal(full.load(items).patches, expected.patches)
    assert half.load(items).patches.sub(expected.patches).abs().max() > 0


def test_an_image_is_encoded_once(store, items, monkeypatch):
    sizes = count_encoded(store, monkeypatch)
    store.encode([*items, *items], batch_size=4, progress=False)
    store.load([items[1], items[1], items[0]])
    FeatureStore(store.backbone, store.root).load(items)
    assert sizes == [4, 2]


def test_order_and_repetition_are_kept(store, items):
    together = store.load([items[2], items[0], items[2]])
    assert torch.equal(together.cls[0], together.cls[2])
    assert torch.equal(together.patches[1], store.load([items[0]]).patches[0])


def test_a_changed_image_finds_nothing_stale(store, items, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(items[0].image).save(path)
    before = store.load([Item(path, 0, "a")])
    Image.fromarray(items[-1].image).save(path)
    after = store.load([Item(path, 0, "a")])
    assert not torch.equal(before.cls, after.cls)


@pytest.mark.parametrize("change", ["weights", "taps", "heads", "transform"])
def test_another_backbone_has_another_fingerprint(small_backbone, small_folder, change):
    other = Backbone.load(f"local-dir:{small_folder}", taps=(1, 2, 3) if change == "taps" else None)
    assert change == "taps" or backbone_fingerprint(other) == backbone_fingerprint(small_backbone)
    if change == "weights":
        other.clip.visual.proj.data[0, 0] += 1e-6
    if change == "heads":
        other.clip.visual.transformer.resblocks[0].attn.num_heads = 4
    if change == "transform":
        other.transform.transforms.pop()  # no normalisation
    assert backbone_fingerprint(other) != backbone_fingerprint(small_backbone)


def flip_bit(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 4]) + data[101:]


@pytest.mark.parametrize(
    "damage", [flip_bit, lambda data: data[:-7], lambda data: data + b"x", lambda data: b""]
)
def test_a_damaged_entry_is_noticed_and_made_again(store, items, damage):
    expected = store.load(items)
    path = store.path(items[3])
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match=f"damaged features of {items[3].name}"):
        found = store.load(items)
    torch.testing.assert_close(found.patches, expected.patches, rtol=1e-3, atol=1e-3)
    with warnings.catch_warnings(action="error"):
        store.load(items)


def fill(folder, items, small_folder) -> None:
    torch.set_num_threads(1)
    FeatureStore(Backbone.load(f"local-dir:{small_folder}"), folder).encode(
        items, batch_size=1, progress=False
    )


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on, with threads around
def test_two_processes_may_fill_the_same_store(store, items, small_folder):
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=fill, args=(store.root, items, small_folder)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert sorted(path.name for path in store.folder.iterdir()) == sorted(store.path(i).name for i in items)
    torch.testing.assert_close(
        store.load(items).cls, encode_items(store.backbone, items).cls, rtol=1e-3, atol=1e-3
    )


def test_numbers_that_do_not_fit_are_refused(store, items, small_folder):
    large = Backbone.load(f"local-dir:{small_folder}")
    large.clip.visual.proj.data *= 1e6
    with pytest.raises(InctrlError, match=f"{items[0].name}.*dtype=torch.float32"):
        FeatureStore(large, store.root).load(items[:1])


def test_a_missing_image_and_a_read_only_folder_are_named(small_backbone, store, items, tmp_path):
    with pytest.raises(InctrlError, match="nowhere.png"):
        store.load([Item(tmp_path / "nowhere.png", 0, "x")])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InctrlError, match="cannot write"):
        FeatureStore(small_backbone, tmp_path / "file").load(items)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("INCTRL_LITE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("INCTRL_LITE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "inctrl_lite"


def test_array_content_and_shape_make_the_key(store):
    image = np.zeros((4, 9, 3), np.uint8)
    assert store.path(Item(image, 0, "a")) == store.path(Item(image.copy(), 1, "b"))
    assert store.path(Item(image, 0, "a")) != store.path(Item(image.reshape(9, 4, 3), 0, "a"))
