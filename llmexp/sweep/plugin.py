"""Let Hydra find the sweeper and the launcher."""

import sys
from pathlib import Path


def register() -> None:
    """Put the folder that holds our part of `hydra_plugins` on the path; call it before hydra.main.

    Hydra 1.3 accepts plugins from the namespace package `hydra_plugins` only, and scans whatever of
    it can be imported: no packaging is needed for that, neither in a checkout nor in a wheel.
    """
    folder = str(Path(__file__).parent / "plugins")
    if folder not in sys.path:
        sys.path.append(folder)
