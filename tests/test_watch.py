"""A watched folder: each image once, when it is whole, and again when it has changed."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from inctrl_lite import AnomalyDetector, InCTRL, InctrlError
from inctrl_lite.watch import watch_folder


def save(path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def detector(small_backbone):
    torch.manual_seed(0)
    model = InCTRL(small_backbone.embed_dim, small_backbone.num_patches, head="lite")
    pictures = [np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8) for i in range(3)]
    return AnomalyDetector(model, small_backbone, device="cpu").fit(pictures, "cup")


class Ended(Exception):
    pass


def watched(detector, folder, steps, **options):
    """What is said while `steps` happen, one between two looks."""
    left, said = iter(steps), []

    def pause():
        try:
            next(left)()
        except StopIteration:
            raise Ended from None

    with pytest.raises(Ended):
        for line in watch_folder(detector, folder, pause=pause, **options):
            said.append(line)
    return said


def nothing():
    pass


def test_each_image_is_scored_once_and_like_predict(detector, tmp_path):
    save(tmp_path / "a.png", 50)
    later = tmp_path / "sub" / "b.png"
    said = watched(detector, tmp_path, [nothing, nothing, lambda: save(later, 51), nothing, nothing, nothing])
    assert [line["name"] for line in said] == ["a.png", "sub/b.png"]
    assert said[1]["score"] == detector.predict(later)[0].score
    assert said[0]["threshold"] == detector.categories["cup"].threshold


def test_a_file_that_grows_is_left_alone_until_it_is_whole(detector, tmp_path):
    save(tmp_path / "whole.png", 50)
    data = (tmp_path / "whole.png").read_bytes()
    slow = tmp_path / "slow.png"
    grow = [lambda n=n: slow.write_bytes(data[: n * len(data) // 4]) for n in (1, 2, 3, 4)]
    said = watched(detector, tmp_path, [nothing, *grow, nothing, nothing])
    assert [line["name"] for line in said] == ["whole.png", "slow.png"] and "error" not in said[1]


def test_a_changed_file_is_scored_again_and_a_broken_one_named(detector, tmp_path):
    save(tmp_path / "a.png", 50)

    def change():
        save(tmp_path / "a.png", 51)
        os.utime(tmp_path / "a.png", ns=(1, 1))

    broken = [lambda: (tmp_path / "b.png").write_bytes(b"no picture")]
    said = watched(detector, tmp_path, [nothing, change, nothing, *broken, nothing, nothing], threshold=0.1)
    assert [line["name"] for line in said] == ["a.png", "a.png", "b.png"]
    assert said[0]["score"] != said[1]["score"] and said[0]["threshold"] == 0.1
    assert "b.png" in said[2]["error"]


def test_wrong_folders_and_categories_are_named(detector, tmp_path):
    with pytest.raises(InctrlError, match="nowhere"):
        next(watch_folder(detector, tmp_path / "nowhere"))
    with pytest.raises(InctrlError, match="'pill' is not fitted"):
        next(watch_folder(detector, tmp_path, "pill"))
