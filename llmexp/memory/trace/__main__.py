"""python -m llmexp.memory.trace: measure settings on the fake GPU, in a process of its own.

Reads a JSON list of requests from stdin, writes one line of JSON per result to stdout.
"""

import json
import sys
import warnings
from typing import Any

from llmexp.memory import allocator
from llmexp.memory.setting import Setting
from llmexp.memory.trace import step


def main() -> None:
    """Answer every request of stdin in its order."""
    warnings.simplefilter("ignore")
    for request in json.load(sys.stdin):
        setting = Setting(**request["setting"])
        print(json.dumps(measure(setting, rows=request["rows"], passes=request["passes"])))
        sys.stdout.flush()


def measure(setting: Setting, *, rows: int, passes: int) -> dict[str, Any]:
    """Return the peaks of a traced step in bytes: live per phase and kind, and as allocated."""
    recording = step.trace(setting, rows=rows, passes=passes)
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
