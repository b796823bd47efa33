"""Exercises of notebook 11: full scale."""

from inctrl_lite.checks.engine import Exercise


def store_gigabytes(images: int, D: int, L: int, N: int, C: int, size: int) -> float:
    """Size of a feature store in GB (10**9 bytes), with numbers of `size` bytes."""
    return images * (D + L * N * C) * size / 1e9


check_store_gigabytes = Exercise(
    solution=store_gigabytes,
    cases=lambda seed: (90_000 + 7000 * seed, 640 - 128 * seed, 2 + seed % 3, 225 + 31 * seed, 896, 2 + seed),
    mistakes={
        "The global embedding is stored as well: D more numbers an image.": lambda images, D, L, N, C, size: (
            store_gigabytes(images, 0, L, N, C, size)
        ),
        "The patch tokens of all L stages are stored.": lambda images, D, L, N, C, size: store_gigabytes(
            images, D, 1, N, C, size
        ),
        "A number takes `size` bytes.": lambda images, D, L, N, C, size: store_gigabytes(
            images, D, L, N, C, 1
        ),
        "A GB is 10**9 bytes here; you count in units of 2**30.": lambda images, D, L, N, C, size: (
            store_gigabytes(images, D, L, N, C, size) * 1e9 / 2**30
        ),
        "There is one global embedding an image, not one a stage.": lambda images, D, L, N, C, size: (
            store_gigabytes(images, L * D, L, N, C, size)
        ),
        "This is in MB: a GB has 10**9 bytes.": lambda images, D, L, N, C, size: (
            1000 * store_gigabytes(images, D, L, N, C, size)
        ),
    },
    tolerance=1e-4,
)


def tower_seconds(images: int, steps: int, batch: int, K: int, rate: float, stored: bool) -> float:
    """Seconds in the image tower at `rate` images a second, with or without a feature store."""
    passes = images if stored else steps * batch * (1 + K)
    return passes / rate


check_tower_seconds = Exercise(
    solution=tower_seconds,
    cases=lambda seed: (5000 + 7 * seed, 1000 - 30 * seed, 16, 2 + seed, 50.0 + 13 * seed, seed % 2 == 1),
    mistakes={
        "Without a store each query brings K normal images: 1 + K images.": lambda i, s, b, k, r, stored: (
            tower_seconds(i, s, b, 0, r, stored)
        ),
        "The query itself passes through the tower as well: 1 + K images.": lambda i, s, b, k, r, stored: (
            tower_seconds(i, s, b, k - 1, r, stored)
        ),
        "Each query of the batch has its own K normal images: multiply by 1 + K, do not add K.": (
            lambda i, s, b, k, r, stored: (i if stored else s * (b + k)) / r
        ),
        "Divide by the rate: more images a second take less time.": lambda i, s, b, k, r, stored: (
            tower_seconds(i, s, b, k, 1 / r, stored)
        ),
        "With a store each image passes through the tower once, however many steps "
        "follow.": lambda i, s, b, k, r, stored: tower_seconds(i, s, b, k, r, False),
        "Without a store nothing is kept: every step encodes its whole batch again.": (
            lambda i, s, b, k, r, stored: tower_seconds(i, s, b, k, r, True)
        ),
        "You have exchanged the two cases.": lambda i, s, b, k, r, stored: tower_seconds(
            i, s, b, k, r, not stored
        ),
    },
)
