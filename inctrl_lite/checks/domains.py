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
    if seed == 2:  # coarse: many ties
        ours, rival = ours.round(), rival.round()
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


def _of_the_mean(gaps: np.ndarray, ddof: int = 1, n: int | None = None) -> tuple[float, float]:
    half = 1.96 * gaps.std(ddof=ddof) / np.sqrt(n or len(gaps))
    return float(gaps.mean() - half), float(gaps.mean() + half)


def _won(labels: np.ndarray, scores: np.ndarray) -> float:
    return float((scores[labels == 1][:, None] > scores[labels == 0]).mean())


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
        "The ends are exchanged: the lower one comes first.": lambda y, a, b, p: paired_interval(y, a, b, p)[
            ::-1
        ],
        "You draw the images for one method only. Use the same draw for both, then subtract.": (
            lambda y, a, b, p: _ends(_values(y, a, p) - auroc(y, b))
        ),
        "This is the interval of the mean difference over the repetitions, which shrinks if you repeat more. "
        "Take the quantiles of the differences.": lambda y, a, b, p: _of_the_mean(
            _values(y, a, p) - _values(y, b, p)
        ),
        "This is 1.96 standard deviations around the mean. Take the quantiles of the differences.": (
            lambda y, a, b, p: _of_the_mean(_values(y, a, p) - _values(y, b, p), 0, 1)
        ),
        "A tie of two scores counts 1/2 in an AUROC.": lambda y, a, b, p: _ends(
            np.array([_won(y[q], a[q]) - _won(y[q], b[q]) for q in p])
        ),
        "You do not draw the labels together with the scores. Use the same indices for all "
        "three.": lambda y, a, b, p: _ends(np.array([auroc(y, a[q]) - auroc(y, b[q]) for q in p])),
    },
)


def _table(seed: int) -> tuple[pd.DataFrame, str]:
    rng = np.random.default_rng(seed)
    methods = ["ours", *(f"rival {i}" for i in range(2 + seed))]
    values = rng.uniform(0.5, 1.0, (4 + seed, len(methods)))
    if seed == 3:  # the best median is not the best mean
        values[:, 1], values[:, 2], values[-1, 1] = 0.9, 0.85, 0.2
    values[:, 0] = values[:, 1:].mean(1) + 0.12
    values[0, 0] = values[0, 1:].max()  # a tie
    index = [f"set {i}" for i in range(len(values))]
    table = pd.DataFrame(values.clip(0, 1), index, methods)
    return table[np.roll(methods, seed).tolist()], "ours"  # our column is not always the first


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
        '"one rival": choose the rival by its mean over the data sets, not by its median.': _changed(
            **{"one rival": lambda t, o: (t[o] - _rivals(t, o)[_rivals(t, o).median().idxmax()]).mean()}
        ),
        "Our method is the column with the given name, and not always the first one.": lambda t, o: margins(
            t, t.columns[0]
        ),
        '"each best" is the margin to the mean of the rivals. Take the largest of each row.': _changed(
            **{"each best": lambda t, o: (t[o] - _rivals(t, o).mean(axis=1)).mean()}
        ),
        '"each best": you take the largest value of each column. Take the largest of each row.': _changed(
            **{"each best": lambda t, o: t[o].mean() - _rivals(t, o).max(axis=0).mean()}
        ),
        '"one rival" and "each best" are exchanged.': lambda t, o: {
            "one rival": margins(t, o)["each best"],
            "each best": margins(t, o)["one rival"],
            "ahead": margins(t, o)["ahead"],
        },
        '"ahead" is a share between 0 and 1, not in percent.': _changed(
            ahead=lambda t, o: 100 * margins(t, o)["ahead"]
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


# --- what training adds ------------------------------------------------------------------------------


def _support_draws(seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([0, 1], [12 + seed, 9]))
    untrained = rng.normal(labels, 1.2, (3 + seed % 2, len(labels)))
    trained = untrained + 0.7 * labels + 0.5 * rng.normal(size=untrained.shape)
    if seed == 2:  # coarse: many ties
        trained, untrained = trained.round(), untrained.round()
    classes = [np.flatnonzero(labels == label) for label in (0, 1)]
    picks = np.stack([np.concatenate([rng.choice(c, len(c)) for c in classes]) for _ in range(40)])
    return labels, trained, untrained, picks, rng.integers(0, len(trained), (40, len(trained)))


def training_gain(
    labels: np.ndarray, trained: np.ndarray, untrained: np.ndarray, picks: np.ndarray, draws: np.ndarray
) -> tuple[float, float, float]:
    """Mean gain in AUROC over support draws, and its 95 % interval over images and draws."""

    def gain(images: np.ndarray | slice, chosen: np.ndarray | range) -> float:
        y = labels[images]
        return float(np.mean([auroc(y, trained[s][images]) - auroc(y, untrained[s][images]) for s in chosen]))

    gains = [gain(pick, draw) for pick, draw in zip(picks, draws, strict=True)]
    low, high = np.quantile(gains, [0.025, 0.975])
    return gain(slice(None), range(len(trained))), float(low), float(high)


def _gains(labels, trained, untrained, picks, draws) -> np.ndarray:
    return np.array(
        [
            np.mean([auroc(labels[p], trained[s][p]) - auroc(labels[p], untrained[s][p]) for s in d])
            for p, d in zip(picks, draws, strict=True)
        ]
    )


def _whole(labels, trained, untrained) -> float:
    pairs = zip(trained, untrained, strict=True)
    return float(np.mean([auroc(labels, one) - auroc(labels, other) for one, other in pairs]))


def _with(ends: Callable[..., np.ndarray], levels: tuple[float, float] = (0.025, 0.975)) -> Callable:
    """A wrong answer with an interval from other values."""

    def wrong(labels, trained, untrained, picks, draws):
        low, high = np.quantile(ends(labels, trained, untrained, picks, draws), levels)
        return _whole(labels, trained, untrained), float(low), float(high)

    return wrong


def _by(gain: Callable[[np.ndarray, np.ndarray, np.ndarray], float]) -> Callable:
    """A wrong answer: another gain of labels [n] and the scores [S, n] of the drawn support sets."""

    def wrong(labels, trained, untrained, picks, draws):
        pairs = zip(picks, draws, strict=True)
        found = [gain(labels[p], trained[d][:, p], untrained[d][:, p]) for p, d in pairs]
        low, high = np.quantile(found, [0.025, 0.975])
        return gain(labels, trained, untrained), float(low), float(high)

    return wrong


check_training_gain = Exercise(
    solution=training_gain,
    cases=_support_draws,
    parts=("gain", "lower end", "upper end"),
    mistakes={
        "Your interval is over the images only. Draw the support sets as well.": _with(
            lambda y, a, b, p, d: _gains(y, a, b, p, np.tile(np.arange(len(a)), (len(p), 1)))
        ),
        "Your interval is over the support sets only. Draw the images as well.": _with(
            lambda y, a, b, p, d: _gains(y, a, b, np.tile(np.arange(len(y)), (len(p), 1)), d)
        ),
        "The sign is wrong: trained minus untrained.": lambda y, a, b, p, d: training_gain(y, b, a, p, d),
        "You average the scores over the support sets before the AUROC. Average the gains.": (
            lambda y, a, b, p, d: training_gain(
                y, a.mean(0)[None], b.mean(0)[None], p, np.zeros((len(p), 1), int)
            )
        ),
        "You average the scores of the drawn support sets before the AUROC. Average the gains.": _by(
            lambda y, a, b: auroc(y, a.mean(0)) - auroc(y, b.mean(0))
        ),
        "You put the images of all support sets into one AUROC. Scores of different support sets have "
        "different scales: compute an AUROC for each, and average the gains.": _by(
            lambda y, a, b: auroc(np.tile(y, len(a)), a.ravel()) - auroc(np.tile(y, len(b)), b.ravel())
        ),
        "Each support set gives a value of its own to your interval. Average the gains over the support sets "
        "of a repetition first.": lambda y, a, b, p, d: (
            _whole(y, a, b),
            *np.quantile(
                [auroc(y[q], a[s][q]) - auroc(y[q], b[s][q]) for q, e in zip(p, d, strict=True) for s in e],
                [0.025, 0.975],
            ).tolist(),
        ),
        "The gain is that of the images as they are, not the mean of the drawn ones.": (
            lambda y, a, b, p, d: (float(_gains(y, a, b, p, d).mean()), *training_gain(y, a, b, p, d)[1:])
        ),
        "You use the first support set only.": lambda y, a, b, p, d: training_gain(
            y, a[:1], b[:1], p, np.zeros((len(p), 1), int)
        ),
        "You leave out 5 % at each end. An interval of 95 % leaves out 2.5 % at each end.": _with(
            _gains, (0.05, 0.95)
        ),
        "This is the AUROC of the trained method, not the gain.": lambda y, a, b, p, d: (
            float(np.mean([auroc(y, one) for one in a])),
            *training_gain(y, a, b, p, d)[1:],
        ),
        "You draw different support sets for the two methods.": _with(
            lambda y, a, b, p, d: np.array(
                [
                    np.mean([auroc(y[q], a[s][q]) for s in e])
                    - np.mean([auroc(y[q], b[s][q]) for s in reversed_])
                    for q, e, reversed_ in zip(p, d, d[::-1], strict=True)
                ]
            )
        ),
        "You do not draw the labels together with the scores.": _with(
            lambda y, a, b, p, d: np.array(
                [
                    np.mean([auroc(y, a[s][q]) - auroc(y, b[s][q]) for s in e])
                    for q, e in zip(p, d, strict=True)
                ]
            )
        ),
        "The order is: gain, lower end, upper end.": lambda y, a, b, p, d: (
            *training_gain(y, a, b, p, d)[1:],
            training_gain(y, a, b, p, d)[0],
        ),
    },
)
