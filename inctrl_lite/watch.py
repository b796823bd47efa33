"""Wait for new images in a folder and score each: what `inctrl-lite score --watch` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from inctrl_lite.data.images import scan_folder
from inctrl_lite.detector import AnomalyDetector
from inctrl_lite.errors import InctrlError

PAUSE = 0.5  # seconds between two looks at the folder
State = tuple[int, int]  # size in bytes, time of the last change in nanoseconds


def watch_folder(
    detector: AnomalyDetector,
    folder: str | Path,
    category: str | None = None,
    *,
    threshold: float | None = None,
    pause: Callable[[], object] = lambda: time.sleep(PAUSE),
) -> Iterator[dict[str, Any]]:
    """Score each image that lies in a folder or appears there, without end.

    An image is read when its size and time have not changed between two looks, so that a file which is still
    being written is left alone. A changed file is scored again. Memory holds one small entry for each image
    that is in the folder, and nothing for those that were taken away.

    Args:
        detector: with at least one fitted category.
        folder: of images, sub-folders included.
        category: which fitted category; may be left out when there is one.
        threshold: in place of the category's.
        pause: what is done between two looks; tests end the watch here.

    Yields:
        `Prediction.to_dict`, or {"name", "error"} of a file that cannot be read.

    Raises:
        InctrlError: no such folder, or category not fitted.
    """
    category, folder = detector.category(category), Path(folder)
    seen: dict[Path, State] = {}  # at the last look
    done: dict[Path, State] = {}  # what was scored
    while True:
        now = _states(folder)
        done = {path: state for path, state in done.items() if path in now}
        for path in sorted(now):
            if now[path] == seen.get(path) and now[path] != done.get(path):
                done[path] = now[path]
                yield _line(detector, path, path.relative_to(folder).as_posix(), category, threshold)
        seen = now
        pause()


def _states(folder: Path) -> dict[Path, State]:
    found = {}
    for path in scan_folder(folder)[0]:
        try:
            status = path.stat()
        except OSError:  # taken away meanwhile
            continue
        found[path] = status.st_size, status.st_mtime_ns
    return found


def _line(
    detector: AnomalyDetector, path: Path, name: str, category: str, threshold: float | None
) -> dict[str, Any]:
    try:
        prediction = next(iter(detector.stream([(name, path)], category)))
    except InctrlError as error:
        return {"name": name, "error": str(error)}
    if threshold is not None:
        prediction = replace(prediction, threshold=threshold)
    return prediction.to_dict()
