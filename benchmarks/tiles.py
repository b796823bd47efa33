"""Which tiles find a short scratch in a large photograph? python benchmarks/tiles.py

Photographs of scikit-image, enlarged to 1200 x 1200 pixels with fresh noise and a random cut; on half of the
test images a scratch of 20 x 2 pixels is drawn. For each size of tile: AUROC, how often the peak of the map
lies within 50 pixels of the scratch, and seconds for each image. Writes benchmarks/results/tiles.csv.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from quality import ROOT, write_blocks
from record import RESULTS
from skimage import data

from inctrl_lite import AnomalyDetector
from inctrl_lite.files import write_text
from inctrl_lite.metrics import auroc

SIDE, LENGTH, NEAR = 1200, 20, 50  # pixels
SHOTS, TESTS = 4, 10
TILES = (None, 336, 224, 160)
CROPS = {"brick": None, "retina": (300, 300, 1100, 1100), "coins": None, "gravel": None}


def photograph(name: str, rng: np.random.Generator) -> Image.Image:
    """The photograph with a random cut of up to 40 pixels and fresh noise, as uint8 RGB of SIDE x SIDE."""
    picture = Image.fromarray(getattr(data, name)()).convert("RGB").crop(CROPS[name])
    left, top = rng.integers(0, 40, 2)
    cut = picture.crop((left, top, left + picture.width - 40, top + picture.height - 40))
    pixels = np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float)
    return Image.fromarray((pixels + rng.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8))


def scratched(name: str, number: int, rng: np.random.Generator) -> tuple[Image.Image, tuple[int, int]]:
    """A photograph with a scratch, dark or bright, and the scratch's place (x, y)."""
    picture = photograph(name, rng)
    x, y = (int(value) for value in rng.integers(200, SIDE - 200, 2))
    grey = (20, 235)[number % 2]
    end = x + LENGTH, y + int(rng.integers(-8, 8))
    ImageDraw.Draw(picture).line((x, y, *end), fill=(grey,) * 3, width=2)
    return picture, (x + LENGTH // 2, y)


def blocks() -> dict[Path, dict[str, str]]:
    """What stands between marks in texts, as in `quality.blocks`."""
    found = pd.read_csv(RESULTS / "tiles.csv")
    mean = found.groupby("tile", sort=False)[["auroc", "located"]].mean()
    whole, tiled = mean.loc["whole"], mean.loc["160"]
    script = "[benchmarks/tiles.py](https://github.com/inctrl-lite/inctrl_lite/blob/main/benchmarks/tiles.py)"
    sentence = (
        f"A scratch of {LENGTH} x 2 pixels on four photographs of {SIDE} x {SIDE} pixels ({script}): AUROC "
        f"{whole.auroc:.2f} for the whole picture, {tiled.auroc:.2f} with tiles of 160 pixels; the peak of "
        f"the map is at the scratch in {whole.located:.0%} and {tiled.located:.0%} of the pictures. The "
        "automatic size was chosen on these photographs."
    )
    return {ROOT / "book" / "faq.md": {"tiles": sentence}}


def main() -> None:
    rows = []
    for name in CROPS:
        rng = np.random.default_rng(0)
        normals = [photograph(name, rng) for _ in range(SHOTS)]
        good = [photograph(name, rng) for _ in range(TESTS)]
        bad = [scratched(name, i, rng) for i in range(TESTS)]
        for tiles in TILES:
            detector = AnomalyDetector.from_pretrained("photo", device="cpu").fit(normals, name, tiles=tiles)
            begin = time.perf_counter()
            found = detector.predict([*good, *(picture for picture, _ in bad)])
            seconds = (time.perf_counter() - begin) / len(found)
            hits = []
            for prediction, (_, (x, y)) in zip(found[TESTS:], bad, strict=True):
                values = prediction.upsampled_map()
                row, column = np.unravel_index(values.argmax(), values.shape)
                hits.append(abs(row - y) < NEAR and abs(column - x) < NEAR)
            rows.append(
                {
                    "photograph": name,
                    "tile": tiles or "whole",
                    "tiles": detector.categories[name].view.count,
                    "auroc": auroc([0] * TESTS + [1] * TESTS, found.scores),
                    "located": np.mean(hits),
                    "seconds_per_image": round(seconds, 2),
                }
            )
            print(rows[-1], flush=True)
    write_text(RESULTS / "tiles.csv", pd.DataFrame(rows).to_csv(index=False, float_format="%.3f"))
    write_blocks(blocks())


if __name__ == "__main__":
    main()
