"""Let Hydra find the sweeper and the launcher."""

import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def register() -> None:
    """Put the folder that holds our part of `hydra_plugins` on the path; call it before hydra.main.

    Hydra 1.3 accepts plugins from the namespace package `hydra_plugins` only, and scans whatever of
    it can be imported: no packaging is needed for that, neither in a checkout nor in a wheel.
    """
    OmegaConf.register_new_resolver("times", _times, replace=True)
    folder = str(Path(__file__).parent / "plugins")
    if folder not in sys.path:
        sys.path.append(folder)


def _times(number: Any, factor: Any) -> float:
    """Multiply, to six digits: ${times:${model.lr},0.02} in conf/sweep/."""
    return float(f"{number * factor:.6g}")
