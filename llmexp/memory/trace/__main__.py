"""python -m llmexp.memory.trace: measure settings on the fake GPU, in a process of its own.

Reads requests from stdin and writes results to stdout, each one line of JSON.
"""

import json
import sys
import warnings
from typing import Any

from llmexp.memory import allocator
from llmexp.memory.setting import Setting
from llmexp.memory.trace import stand_in, step


def main() -> None:
    """Answer every request of stdin, until it is closed."""
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a request, or why there are none."""
    setting = Setting(**request["setting"])
    try:
        return measure(setting, rows=request["rows"], passes=request["passes"])
    except Exception as problem:  # whatever a model of the hub does on fake tensors
        reason = str(problem).strip().partition("\n")[0]
        return {"error": f"{type(problem).__name__}: {reason}"}


def measure(setting: Setting, *, rows: int, passes: int) -> dict[str, Any]:
    """Return the peaks of a traced step in bytes: live per phase and kind, and as allocated."""
    recording = step.trace(setting, stand_in.Batches(rows, setting, passes))
    result: dict[str, Any] = {"peaks": recording.peaks()}
    if setting.layers is None:
        replayed = allocator.replay(recording.events)
        result |= {
            "parts": recording.at_peak(),
            "allocated": replayed.peak_allocated,
            "reserved": replayed.peak_reserved,
            "min_cap": allocator.min_cap(recording.events),
        }
    return result


if __name__ == "__main__":
    main()
