"""Checks of the course's exercises: `checks.check_patch_residual_map(my_function)`.

One module for each notebook. It holds the answer keys and the mistakes that are recognised.
"""

from importlib import import_module
from pkgutil import iter_modules

from inctrl_lite.checks.engine import CheckFailed, Exercise

__all__ = ["CheckFailed", "Exercise", "exercises"]

for _module in iter_modules(__path__):
    _found = vars(import_module(f"{__name__}.{_module.name}"))
    globals().update({name: value for name, value in _found.items() if name.startswith("check_")})


def exercises() -> dict[str, Exercise]:
    """Every exercise by the name of its stub."""
    return {e.name: e for e in globals().values() if isinstance(e, Exercise)}
