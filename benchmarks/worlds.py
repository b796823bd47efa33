"""The embedded detector on the unseen procedural worlds: python benchmarks/worlds.py

What `inctrl-lite demo` measures, for K = 2, 4, 8 and three prompt seeds: AUROC and AP of InCTRL and of its
training-free baseline. Writes benchmarks/results/worlds.{csv,md,json}.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pandas as pd

from inctrl_lite.demo import run_demo
from inctrl_lite.environment import environment
from inctrl_lite.files import write_text

RESULTS = Path(__file__).parent / "results"
SHOTS, SEEDS = (2, 4, 8), (0, 1, 2)


def main() -> None:
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for shots in SHOTS:
            for seed in SEEDS:
                parts.append(
                    run_demo(folder, shots=shots, seed=seed).by_world().assign(shots=shots, seed=seed)
                )
                print(f"K = {shots}, seed {seed}: done", flush=True)
    table = pd.concat(parts, ignore_index=True)
    numbers = [column for column in table.columns if column.startswith("AUROC")]
    groups = table.groupby(["world", "shots"], sort=False)[numbers]
    text = groups.mean().map("{:.3f}".format) + " ± " + groups.std().map("{:.3f}".format)
    wide = text.unstack("shots").loc[table["world"].unique()]
    columns = [f"{method.removeprefix('AUROC ')}, K = {shots}" for method, shots in wide.columns]
    lines = ["| AUROC | " + " | ".join(columns) + " |", "|" + "---|" * (1 + len(columns))]
    lines += [
        f"| {world} | " + " | ".join(row) + " |"
        for world, row in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    write_text(RESULTS / "worlds.csv", table.to_csv(index=False, float_format="%.4f"))
    write_text(
        RESULTS / "worlds.json", json.dumps({"seeds": SEEDS, "environment": environment()}, indent=2) + "\n"
    )
    write_text(RESULTS / "worlds.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
