"""What a result was made with: versions and machine."""

from __future__ import annotations

import os
import platform
import sys
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "timm", "open_clip_torch", "numpy", "pillow", "scikit-learn")


def environment() -> dict[str, str]:
    """Versions, processor and device, to be recorded beside every measurement."""
    import torch

    from inctrl_lite import __version__
    from inctrl_lite.device import pick_device

    device = pick_device("auto")
    return {
        "inctrl_lite": __version__,
        "python": platform.python_version(),
        **{name: _installed(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def code_version(*modules: str) -> str:
    """Digest of the source of some imported modules and of the libraries' versions.

    Part of every cache key: what another version of the code computed is never taken for this one's.

    Args:
        modules: names as in `sys.modules`.
    """
    digest = blake2b(digest_size=8)
    for name in sorted(modules):
        file = sys.modules[name].__file__
        digest.update(Path(file).read_bytes() if file else name.encode())
    digest.update(repr([_installed(name) for name in PACKAGES]).encode())
    return digest.hexdigest()


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
