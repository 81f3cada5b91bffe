"""The C library's heap: glibc is told to suit tensors, large blocks that are used again and again.

By default it maps each block above 32 MiB anew, and the kernel zeroes its pages: at GPT-2's size a
fifth of the step. So freed blocks are kept. What is kept has to fit again, and would not:

* PyTorch asks for blocks at multiples of 64 bytes. What glibc cuts off at both ends goes to a cache
  of small blocks, and from there to whoever wants a few bytes. Where those stay, the large block
  between them is an odd hole once it is freed, too small by a few bytes for its like.
* oneDNN, which multiplies in bf16, keeps a plan for each shape that it has seen, up to 1,024, each
  of 0.7 MB in many small pieces.

GPT-2 in bf16 on packed rows, of another shape at each step, held 8.3 GiB after 100 steps, and more
with each; without that cache, and with fewer plans, 3.1, and a step takes an eighth less time.
"""

import contextlib
import ctypes
import os
import sys
import threading

# of mallopt(3)
M_MXFAST, M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = 1, -1, -2, -4
NEVER = -1
PAD = 64 << 20  # bytes by which the heap grows at least
WORTH = 64 << 20  # bytes; less is touched in no time

TUNABLES, NO_CACHE = "GLIBC_TUNABLES", "glibc.malloc.tcache_count=0"
BEGUN = "LLMEXP_BEGUN"  # the process that has begun anew: the system may take away the tunables
GPUS = "/dev/nvidiactl", "/dev/kfd", "/dev/dxg"  # where they are, they train
SCRIPT = "llmexp-train"
HELPS = {"--help", "-h", "--shell-completion", "-sc"}  # someone waits, and nothing trains
PLANS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}  # a step of GPT-2 takes 18


def may_begin_anew() -> bool:
    """Say whether to `begin_anew` is of use: on a CPU with glibc, for a command of llmexp that has
    not. Set GLIBC_TUNABLES=glibc.malloc.tcache_count=0 yourself where a tool must see one start."""
    if "glibc.malloc.tcache_count" in os.environ.get(TUNABLES, ""):
        return False
    if os.environ.get(BEGUN) == str(os.getpid()) or any(map(os.path.exists, GPUS)):
        return False
    return is_glibc() and is_plain(sys.orig_argv, sys.argv)


def begin_anew() -> None:
    """Start this command once more, in the same process, with what glibc reads at its start alone.

    Call it before anything else is imported. Returns where it cannot: then memory grows, no more.
    """
    tunables = ":".join(filter(None, [os.environ.get(TUNABLES), NO_CACHE]))
    told = {TUNABLES: tunables, BEGUN: str(os.getpid())}
    with contextlib.suppress(OSError, ValueError):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], PLANS | os.environ | told)


def is_plain(words: list[str], given: list[str]) -> bool:
    """Say whether a command, `words`, is Python running a module or the script of llmexp with the
    arguments `given`, not for help or TAB; and not a debugger or a profiler that does."""
    rest = words[1:]
    while rest and rest[0].startswith("-") and rest[0] != "-m":  # options of Python
        rest = rest[2 if rest[0] in ("-X", "-W") else 1 :]
    is_module = rest[:1] == ["-m"]
    name, *arguments = rest[is_module:] or [""]
    is_ours = name.startswith("llmexp.") if is_module else os.path.basename(name) == SCRIPT
    return is_ours and arguments == given[1:] and not HELPS.intersection(given)


def is_glibc() -> bool:
    """Say whether this process runs on glibc."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, OSError, ValueError):  # another system, or another library
        return False


def keep_freed_blocks() -> bool:
    """Tell glibc not to return freed blocks to the system, and to join those that lie side by side;
    say whether it was told. Other C libraries are left as they are."""
    if not is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER, M_TOP_PAD: PAD, M_MXFAST: 0}
    return all([mallopt(option, value) for option, value in wanted.items()])


def touch(size: int) -> threading.Thread | None:
    """Let another thread write on `size` bytes of the heap and free them for the run to come;
    return it, None where that is not worth it or glibc would not keep them.

    The kernel zeroes a page when it is first written on, which for the weights, gradients and
    moments of GPT-2 takes over a second of the first step.
    """
    if size < WORTH or not keep_freed_blocks():
        return None
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    block = library.malloc(size)  # by this thread: others have heaps of their own
    if not block:
        return None

    def write() -> None:
        ctypes.memset(block, 0, size)  # lets go of Python's lock
        library.free(block)

    thread = threading.Thread(target=write, name="touch", daemon=True)
    thread.start()
    return thread
