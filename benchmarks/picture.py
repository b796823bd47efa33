"""The README's picture: python benchmarks/picture.py

Photographs with blended defects, scored by the photo detector, and drawn worlds, scored by the tiny one: a
normal image and the first anomalous test image (not picked by hand) with its anomaly map, K = 4. Writes
benchmarks/results/demo.png.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from inctrl_lite import AnomalyDetector
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.photographs import load_photographs
from inctrl_lite.data.worlds import load_world
from inctrl_lite.demo import PHOTOGRAPHS
from inctrl_lite.viz import MAP_COLOURS

WORLDS = ("unseen-industrial", "solar", "mri-like")


def main() -> None:
    shown = [("photo", c) for c in load_photographs("auxiliary", normal=0, anomalous=1, only=PHOTOGRAPHS)]
    shown += [("tiny", load_world(world, normal=0, anomalous=1)[0]) for world in WORLDS]
    detectors = {name: AnomalyDetector.from_pretrained(name) for name, _ in shown}
    figure = Figure(figsize=(1.4 * len(shown), 4.5), layout="constrained")
    axes = figure.subplots(3, len(shown))
    for column, (name, category) in enumerate(shown):
        detector = detectors[name]
        support = draw_support(category, 4, seed=0)
        detector.fit([item.image for item in support], category.name)
        query = category.test[0]
        prediction = detector.predict(query.image, category.name)[0]
        for row, picture in enumerate((support[0].image, query.image, prediction.overlay())):
            axes[row, column].imshow(picture)
            axes[row, column].set(xticks=[], yticks=[])
        axes[0, column].set_title(category.name, fontsize=9)
        axes[1, column].set_xlabel(query.defect, fontsize=9)
        axes[2, column].set_xlabel(f"score {prediction.score:.2f}", fontsize=9)
    for row, label in enumerate(("one of K = 4\nnormal images", "anomalous query", "anomaly map")):
        axes[row, 0].set_ylabel(label, fontsize=9)
    bar = figure.colorbar(ScalarMappable(cmap=MAP_COLOURS), ax=axes[2, :], location="right", aspect=8)
    bar.set_ticks([0, 1], labels=["usual", "far\nbeyond"])
    bar.set_label("anomaly map", fontsize=9)
    path = Path(__file__).parent / "results" / "demo.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
