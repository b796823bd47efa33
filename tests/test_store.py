"""The feature store: right numbers, nothing stale, nothing damaged."""

import multiprocessing
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from inctrl_lite import load_backbone
from inctrl_lite.augment import SUPPORT_AUGMENTATIONS, augment_support
from inctrl_lite.data.category import Item
from inctrl_lite.encoder import Encoder
from inctrl_lite.environment import code_version
from inctrl_lite.errors import InctrlError
from inctrl_lite.store import FeatureStore, cache_folder, pack, unpack


@pytest.fixture
def items(small_categories):
    return small_categories[0].test[:6]


@pytest.fixture
def store(small_backbone, tmp_path):
    return FeatureStore(small_backbone, tmp_path)


@pytest.fixture
def encoder(small_backbone):
    return Encoder(small_backbone)


def count_encoded(store, monkeypatch) -> list[int]:
    """Records how many images go through the backbone from now on."""
    sizes, encode = [], type(store.backbone).encode_images

    def counted(backbone, images):
        sizes.append(len(images))
        return encode(backbone, images)

    monkeypatch.setattr(type(store.backbone), "encode_images", counted)
    return sizes


def assert_close(one, other, tolerance=1e-3):
    torch.testing.assert_close(pack(one), pack(other), rtol=tolerance, atol=tolerance)


def test_stored_features_are_the_backbones(store, items, encoder):
    store.encode(items, progress=False)
    found = store.load(items)
    assert found.global_embedding.dtype == torch.float32
    assert_close(found, encoder.encode_items(items))


def test_batches_and_their_size_change_nothing(small_backbone, items):
    one = Encoder(small_backbone, batch_size=4).encode_items(items)
    assert_close(one, Encoder(small_backbone, batch_size=1).encode_items(items), 1e-5)


def test_stored_copies_are_the_backbones_and_lie_apart(store, items, encoder):
    found = store.load_augmented(items)
    assert_close(found, encoder.encode_augmented_items(items))
    assert found.stages[0].tokens.shape[:2] == (len(items), len(SUPPORT_AUGMENTATIONS))
    alone = encoder.encode_items(items).stages[0].tokens[:, None]
    assert (found.stages[0].tokens - alone).abs().amax((2, 3)).min() > 0.01  # each is another picture
    assert store.augmented.path(items[0]) != store.path(items[0])


@pytest.mark.parametrize("count", [7, 2])
def test_copies_belong_to_their_image_and_are_the_first_ones(items, encoder, count):
    images = encoder.read(items[:3])
    found = encoder.encode_augmented(images, count)
    for i in range(3):
        copies = augment_support(images[i : i + 1], encoder.backbone.map_grid, count)[0]
        assert_close(found[i], encoder.encode(copies), 1e-5)


def test_packing_keeps_every_tensor_in_its_place(small_backbone, items, encoder):
    features = encoder.encode_items(items)
    again = unpack(pack(features), features)
    for one, other in zip(features.stages, again.stages, strict=True):
        assert torch.equal(one.tokens, other.tokens) and one.grid == other.grid
    assert torch.equal(features.global_embedding, again.global_embedding)
    assert torch.equal(features.regions.tokens, again.regions.tokens)


def test_float32_is_stored_exactly_and_apart(small_backbone, items, encoder, tmp_path):
    half, full = (FeatureStore(small_backbone, tmp_path, dtype) for dtype in (torch.float16, torch.float32))
    half.encode(items, progress=False)
    expected = pack(encoder.encode_items(items))
    assert torch.equal(pack(full.load(items)), expected)
    assert pack(half.load(items)).sub(expected).abs().max() > 0


def test_an_image_is_encoded_once(store, items, monkeypatch):
    sizes = count_encoded(store, monkeypatch)
    store.encode([*items, *items], batch_size=4, progress=False)
    store.load([items[1], items[1], items[0]])
    assert sizes == [4, 2]
    FeatureStore(store.backbone, store.root).load(items)
    assert sizes == [4, 2, 1]  # a new store encodes a blank image, to know the shapes


def test_order_and_repetition_are_kept(store, items):
    together = store.load([items[2], items[0], items[2]])
    assert torch.equal(together.global_embedding[0], together.global_embedding[2])
    assert torch.equal(pack(together)[1], pack(store.load([items[0]]))[0])


def test_a_changed_image_finds_nothing_stale(store, items, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(items[0].image).save(path)
    before = store.load([Item(path, 0, "a")])
    Image.fromarray(items[-1].image).save(path)
    after = store.load([Item(path, 0, "a")])
    assert not torch.equal(before.global_embedding, after.global_embedding)


@pytest.mark.parametrize("change", ["weights", "taps", "heads", "preprocessor"])
def test_another_backbone_has_another_fingerprint(small_backbone, small_folder, change):
    from dataclasses import replace

    other = load_backbone(f"local-dir:{small_folder}", taps=(1, 2, 3) if change == "taps" else None)
    assert change == "taps" or other.fingerprint == small_backbone.fingerprint
    if change == "weights":
        other.clip.visual.proj.data[0, 0] += 1e-6
    if change == "heads":
        other.clip.visual.transformer.resblocks[0].attn.num_heads = 4
    if change == "preprocessor":
        other.preprocessor = replace(other.preprocessor, std=(1.0, 1.0, 1.0))
    assert other.fingerprint != small_backbone.fingerprint


def test_other_augmentations_have_another_folder(store, small_backbone, monkeypatch):
    for module in ("augment", "store", "encoder"):
        monkeypatch.setattr(f"inctrl_lite.{module}.SUPPORT_AUGMENTATIONS", ((0, 0, 0, 2),))
    changed = FeatureStore(small_backbone, store.root)
    assert changed.augmented.folder != store.augmented.folder
    assert changed.features.folder == store.features.folder


@pytest.mark.parametrize(
    ("module", "kinds"),
    [
        *((name, {"features", "augmented"}) for name in ("backbones.base", "backbones.clip", "preprocess")),
        *((name, {"features", "augmented"}) for name in ("encoder", "data.images", "store")),
        ("augment", {"augmented"}),
        ("heads.lite", set()),
    ],
)
def test_features_of_changed_code_lie_in_another_folder(store, small_backbone, module, kinds, monkeypatch):
    """The source of one module is another: everything that depends on it is computed again."""

    def changed(*modules: str) -> str:
        return "changed" if f"inctrl_lite.{module}" in modules else code_version(*modules)

    for place in ("backbones.base", "store"):
        monkeypatch.setattr(f"inctrl_lite.{place}.code_version", changed)
    again = FeatureStore(small_backbone, store.root)
    moved = {k for k in ("features", "augmented") if getattr(again, k).folder != getattr(store, k).folder}
    assert moved == kinds


def flip_bit(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 4]) + data[101:]


@pytest.mark.parametrize(
    "damage", [flip_bit, lambda data: data[:-7], lambda data: data + b"x", lambda data: b""]
)
def test_a_damaged_entry_is_noticed_and_made_again(store, items, damage):
    expected = store.load(items)
    path = store.path(items[3])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match=f"damaged features of {items[3].name}"):
        found = store.load(items)
    assert_close(found, expected)
    with warnings.catch_warnings(action="error"):
        store.load(items)


def fill(folder, items, small_folder) -> None:
    torch.set_num_threads(1)
    FeatureStore(load_backbone(f"local-dir:{small_folder}"), folder).encode(
        items, batch_size=1, progress=False
    )


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on, with threads around
def test_two_processes_may_fill_the_same_store(store, items, small_folder, encoder):
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=fill, args=(store.root, items, small_folder)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    names = sorted(path.name for path in store.features.folder.iterdir())
    assert names == sorted(store.path(i).name for i in items)
    assert_close(store.load(items), encoder.encode_items(items))


def test_numbers_that_do_not_fit_are_refused(store, items, small_folder):
    large = load_backbone(f"local-dir:{small_folder}")
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
