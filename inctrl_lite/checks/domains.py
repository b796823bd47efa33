"""Exercises of notebook 09: across domains."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from inctrl_lite.checks.engine import Exercise
from inctrl_lite.metrics import auroc


def _draws(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    normal, anomalous = 14 + seed, 9 + 2 * seed
    labels = rng.permutation(np.repeat([0, 1], [normal, anomalous]))
    shared = rng.normal(labels, 1.0)
    ours, rival = shared + 0.6 * labels + 0.3 * rng.normal(size=len(labels)), shared
    classes = [np.flatnonzero(labels == label) for label in (0, 1)]
    picks = [np.concatenate([rng.choice(members, len(members)) for members in classes]) for _ in range(60)]
    return labels, ours, rival, np.stack(picks)


def paired_interval(
    labels: np.ndarray, ours: np.ndarray, rival: np.ndarray, picks: np.ndarray
) -> tuple[float, float]:
    """95 % interval of the difference of two AUROCs, both computed on the same drawn images."""
    gaps = [auroc(labels[p], ours[p]) - auroc(labels[p], rival[p]) for p in picks]
    low, high = np.quantile(gaps, [0.025, 0.975])
    return float(low), float(high)


def _values(labels: np.ndarray, scores: np.ndarray, picks: np.ndarray) -> np.ndarray:
    return np.array([auroc(labels[p], scores[p]) for p in picks])


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _separate(labels, ours, rival, picks) -> tuple[float, float]:
    (low, high), (low_rival, high_rival) = (_ends(_values(labels, s, picks)) for s in (ours, rival))
    return low - high_rival, high - low_rival


def _end_by_end(labels, ours, rival, picks) -> tuple[float, float]:
    (low, high), (low_rival, high_rival) = (_ends(_values(labels, s, picks)) for s in (ours, rival))
    return low - low_rival, high - high_rival


def _around_zero(labels, ours, rival, picks) -> tuple[float, float]:
    gaps = _values(labels, ours, picks) - _values(labels, rival, picks)
    return _ends(gaps - gaps.mean())


check_paired_interval = Exercise(
    solution=paired_interval,
    cases=_draws,
    parts=("lower end", "upper end"),
    mistakes={
        "You draw other images for each method. Use the same draw for both, then subtract.": (
            lambda y, a, b, p: _ends(_values(y, a, p) - _values(y, b, p[::-1]))
        ),
        "You subtract the lower end of one interval from the upper end of the other. Subtract first, draw "
        "by draw, and then take the quantiles.": (_separate),
        "You subtract the ends of two intervals. Subtract first, draw by draw, and then take the "
        "quantiles.": _end_by_end,
        "The sign is wrong: the difference is ours minus the rival's.": lambda y, a, b, p: _ends(
            _values(y, b, p) - _values(y, a, p)
        ),
        "This is the range of all draws. An interval of 95 % leaves out 2.5 % at each "
        "end.": lambda y, a, b, p: (
            float((_values(y, a, p) - _values(y, b, p)).min()),
            float((_values(y, a, p) - _values(y, b, p)).max()),
        ),
        "You leave out 5 % at each end. An interval of 95 % leaves out 2.5 % at each "
        "end.": lambda y, a, b, p: tuple(
            float(v) for v in np.quantile(_values(y, a, p) - _values(y, b, p), [0.05, 0.95])
        ),
        "Your interval lies around 0. Do not subtract the mean of the differences.": _around_zero,
        "You do not draw the labels together with the scores. Use the same indices for all "
        "three.": lambda y, a, b, p: _ends(np.array([auroc(y, a[q]) - auroc(y, b[q]) for q in p])),
    },
)


def _table(seed: int) -> tuple[pd.DataFrame, str]:
    rng = np.random.default_rng(seed)
    methods = ["ours", *(f"rival {i}" for i in range(2 + seed))]
    values = rng.uniform(0.5, 1.0, (4 + seed, len(methods)))
    values[:, 0] = values[:, 1:].mean(1) + 0.12
    values[0, 0] = values[0, 1:].max()  # a tie
    index = [f"set {i}" for i in range(len(values))]
    return pd.DataFrame(values.clip(0, 1), index, methods), "ours"


def margins(table: pd.DataFrame, ours: str) -> dict[str, float]:
    """Mean margin to the rival that is best on average, to the best of each row, and the share won."""
    rivals = table.drop(columns=ours)
    one = rivals[rivals.mean().idxmax()]
    best = rivals.max(axis=1)
    return {
        "one rival": float((table[ours] - one).mean()),
        "each best": float((table[ours] - best).mean()),
        "ahead": float((table[ours] > best).mean()),
    }


def _rivals(table: pd.DataFrame, ours: str) -> pd.DataFrame:
    return table.drop(columns=ours)


def _changed(**others: Callable) -> Callable:
    def wrong(table: pd.DataFrame, ours: str) -> dict[str, float]:
        return margins(table, ours) | {key: float(f(table, ours)) for key, f in others.items()}

    return wrong


check_margins = Exercise(
    solution=margins,
    cases=_table,
    mistakes={
        "Our method is among the rivals in your answer. Remove its column before you look for the best "
        "rival.": (
            lambda t, o: {
                "one rival": float((t[o] - t[t.mean().idxmax()]).mean()),
                "each best": float((t[o] - t.max(axis=1)).mean()),
                "ahead": float((t[o] > t.max(axis=1)).mean()),
            }
        ),
        '"one rival": choose the rival by its mean over the data sets, not by its largest single '
        "value.": _changed(
            **{"one rival": lambda t, o: (t[o] - _rivals(t, o)[_rivals(t, o).max().idxmax()]).mean()}
        ),
        '"one rival" is the weakest on average. Take the strongest.': _changed(
            **{"one rival": lambda t, o: (t[o] - _rivals(t, o)[_rivals(t, o).mean().idxmin()]).mean()}
        ),
        '"one rival" is the mean of all rivals. Choose one of them.': _changed(
            **{"one rival": lambda t, o: (t[o] - _rivals(t, o).mean(axis=1)).mean()}
        ),
        '"each best": the best rival differs from row to row, so take the maximum of each row.': _changed(
            **{"each best": lambda t, o: (t[o] - _rivals(t, o)[_rivals(t, o).mean().idxmax()]).mean()}
        ),
        '"ahead" is a share between 0 and 1, not a count.': _changed(
            ahead=lambda t, o: (t[o] > _rivals(t, o).max(axis=1)).sum()
        ),
        '"ahead": compare with all rivals, not with one of them.': _changed(
            ahead=lambda t, o: (t[o] > _rivals(t, o)[_rivals(t, o).mean().idxmax()]).mean()
        ),
        '"ahead": a tie with the best rival does not count as ahead.': _changed(
            ahead=lambda t, o: (t[o] >= _rivals(t, o).max(axis=1)).mean()
        ),
        "The sign is wrong: ours minus the rival's.": lambda t, o: {
            k: -v if k != "ahead" else v for k, v in margins(t, o).items()
        },
    },
)
