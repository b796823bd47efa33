"""Files of npm packages, fetched once and checked: no dependency trees, no install scripts."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

# What runs ONNX files in a browser: package, SHA-256 of what npm packs, and the files that one thread with
# SIMD needs (more threads where the page is cross-origin isolated).
RUNTIME = (
    "onnxruntime-web@1.30.0",
    "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71",
    ("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"),
)
# For lecture slides, and for formulas there and on the site: package, SHA-256.
REVEAL = ("reveal.js@5.2.1", "359b575dd51bbda32f89b2fd4c7dc46ad7389a805572158916c29252f7a27333")
MATHJAX = ("mathjax@3.2.2", "1b9c0a1c44df864e915690558e72adb9cc5203360daefd385084ced3b6c64c09")


def npm_pack(package: str, digest: str, files: Mapping[str, Path]) -> None:
    """Fetch a package and lay out some of its files.

    Args:
        package: name@version.
        digest: SHA-256 of what `npm pack` writes.
        files: pattern inside the package -> folder.

    Raises:
        OSError: no npm.
        subprocess.CalledProcessError: npm could not fetch the package.
        ValueError: the package is not the one that was tried.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", "--pack-destination", folder, package]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=300)
        content = next(Path(folder).glob("*.tgz")).read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{package} is not what it was when it was tried")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive.getmembers():
            path = PurePosixPath(member.name).relative_to("package")
            for pattern, target in files.items():
                data = archive.extractfile(member)
                if data is not None and path.parent == PurePosixPath(pattern).parent and path.match(pattern):
                    target.mkdir(parents=True, exist_ok=True)
                    (target / path.name).write_bytes(data.read())
