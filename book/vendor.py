"""Fetch what the site's pages load, so that a reader's browser asks no other host: python book/vendor.py

Needs npm, and a network once. Only these packages at these versions are fetched (`npm pack`: no dependency
trees, no install scripts), and their contents must be the ones known here. The result is not committed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from inctrl_lite.npm import MATHJAX, RUNTIME, npm_pack

BOOK = Path(__file__).parent
ASSETS = BOOK / "assets" / "vendor"  # becomes part of the site
AXE = BOOK / "vendor" / "axe.min.js"  # for the browser tests only
RUNTIME_FILES = BOOK / "vendor" / "onnxruntime"  # build.py puts them beside the live page

# package -> (SHA-256 of what npm packs, {pattern inside it: where it goes})
PACKAGES = {
    "@jupyter-widgets/html-manager@1.0.15": (
        "2b9d65cb7913e1c7d671757a10008b32c9c2448d4429513371e55c07d6107638",
        {"dist/embed-amd.js": ASSETS / "widgets", "dist/*.woff2": ASSETS / "widgets"},
    ),
    "requirejs@2.3.8": (
        "777158e89275e16bd51aec3ef714fbcb5dc45789e7078659933bc814916d7dec",
        {"require.js": ASSETS},
    ),
    MATHJAX[0]: (
        MATHJAX[1],
        {
            "es5/tex-mml-chtml.js": ASSETS / "mathjax",
            "es5/output/chtml/fonts/woff-v2/*.woff": ASSETS / "mathjax/output/chtml/fonts/woff-v2",
        },
    ),
    "axe-core@4.10.3": (
        "0f2b4d7dcdf7d1219df8d1959ad68e565f51d14c3f0d88bb71cd59abeb956292",
        {"axe.min.js": AXE.parent},
    ),
    RUNTIME[0]: (RUNTIME[1], dict.fromkeys(RUNTIME[2], RUNTIME_FILES)),
}
DONE = ASSETS / "packages.txt"  # written last


def vendored() -> bool:
    """Whether everything is here, at these versions."""
    return DONE.exists() and DONE.read_text(encoding="utf-8").split() == list(PACKAGES)


def vendor() -> None:
    """Fetch the packages and lay out their files.

    Raises:
        OSError: no npm.
        subprocess.CalledProcessError: npm could not fetch a package.
        ValueError: a package is not the one that was tried.
    """
    for folder in (ASSETS, AXE.parent, RUNTIME_FILES):
        shutil.rmtree(folder, ignore_errors=True)
    for package, (digest, files) in PACKAGES.items():
        npm_pack(package, digest, files)
    DONE.write_text("\n".join(PACKAGES) + "\n", encoding="utf-8")


if __name__ == "__main__":
    vendor()
    size = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    print(f"{ASSETS.relative_to(BOOK.parent)}: {size / 1e6:.1f} MB")
