"""Memory that a step frees and the next one needs again stays with the process."""

import ctypes
import sys

# of mallopt(3)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
NEVER = -1
PAD = 64 << 20  # bytes by which the heap grows at least


def keep_freed_blocks() -> bool:
    """Tell glibc not to return large freed blocks to the system; say whether it was told.

    By default each block above 32 MiB is mapped anew, and the kernel zeroes its pages: at GPT-2's
    size a fifth of the step. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    wanted = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER, M_TOP_PAD: PAD}
    return all([mallopt(option, value) for option, value in wanted.items()])
