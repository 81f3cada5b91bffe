"""python benchmarks/peer_run.py TASK.json: one contestant of benchmarks/peers.py does its task."""

import sys

from peer_work import read_task


def main() -> None:
    """Import what this contestant needs and nothing else, and run it."""
    task = read_task(sys.argv[1])
    if task.peer in ("tutorial", "nanogpt"):
        import peer_loops as contestants
    elif task.peer in ("trainer", "trl"):
        import peer_trainers as contestants
    else:
        import peer_lightning as contestants
    from peer_meter import Meter
    from peer_work import Examples

    examples = Examples(task.folder)
    getattr(contestants, task.peer)(task, examples, Meter(task, examples))


if __name__ == "__main__":
    main()
