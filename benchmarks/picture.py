"""The README's picture: python benchmarks/picture.py

For each evaluation world, a normal image and the first anomalous test image (not picked by hand) with its
residual map, K = 4. Writes benchmarks/results/demo.png.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from inctrl_lite import AnomalyDetector
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.worlds import EVALUATION, load_world
from inctrl_lite.viz import MAP_COLOURS

WORLDS = [world for world in EVALUATION if not world.endswith("multiclass")]


def main() -> None:
    detector = AnomalyDetector.from_pretrained("tiny")
    figure = Figure(figsize=(1.55 * len(WORLDS), 4.5), layout="constrained")
    axes = figure.subplots(3, len(WORLDS))
    for column, world in enumerate(WORLDS):
        category = load_world(world, normal=0, anomalous=1)[0]
        support = draw_support(category, 4, seed=0)
        detector.fit([item.image for item in support], category.name)
        query = category.test[0]
        prediction = detector.predict(query.image, category.name)[0]
        for row, picture in enumerate((support[0].image, query.image, prediction.overlay())):
            axes[row, column].imshow(picture)
            axes[row, column].set(xticks=[], yticks=[])
        axes[0, column].set_title(world, fontsize=9)
        axes[1, column].set_xlabel(query.defect, fontsize=9)
        axes[2, column].set_xlabel(f"score {prediction.score:.2f}", fontsize=9)
    for row, label in enumerate(("one of K = 4\nnormal images", "anomalous query", "residual map")):
        axes[row, 0].set_ylabel(label, fontsize=9)
    bar = figure.colorbar(ScalarMappable(cmap=MAP_COLOURS), ax=axes[2, :], location="right", aspect=8)
    bar.set_ticks([0, 1], labels=["usual", "far\nbeyond"])
    bar.set_label("patch residual", fontsize=9)
    path = Path(__file__).parent / "results" / "demo.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
