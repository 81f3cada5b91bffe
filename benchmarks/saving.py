"""What saving costs a run of the size of gpt2. Needs 4 GB of disk.

    python benchmarks/saving.py [--layers 12] [--out FOLDER]

One save is a checkpoint (weights and both moments of Adam: 1.5 GB, hashed, synced, renamed) and
the pruning of an older one, which reads the newest back and compares every hash. At the default
interval (checkpoint.every_minutes=10) the run stands still for one save in ten minutes of
training. Writes benchmarks/results/saving.md.
"""

import argparse
import datetime
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SAVES = 5
EVERY_MINUTES = 10  # conf/train.yaml


def main() -> None:
    """Measure, print the table and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12, help="of a GPT-2, 768 wide")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args()
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from llmexp import checkpoint
    from llmexp.engine import State

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPT2LMHeadModel(GPT2Config(n_layer=given.layers)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    scaler = torch.amp.GradScaler(device, enabled=False)
    seconds, work = [], []
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name) / "checkpoints"
        for step in range(1, SAVES + 1):
            began, busy = time.perf_counter(), time.process_time()
            path = checkpoint.save(
                folder,
                step,
                model=model,
                optimizer=optimizer,
                scaler=scaler,
                state={"state": State().as_dict()},
            )
            checkpoint.prune(folder, keep=2)
            seconds.append(time.perf_counter() - began)
            work.append(time.process_time() - busy)
        size = sum(file.stat().st_size for file in path.iterdir()) / 1e9
    load = os.getloadavg()[0]
    found = {
        "median": sorted(seconds)[SAVES // 2],
        "slowest": max(seconds),
        "slowest, its own work alone (CPU time)": max(work),
    }
    rows = "\n".join(
        f"| {name} | {value:.1f} | {value / (EVERY_MINUTES * 60 + value):.2%} |"
        for name, value in found.items()
    )
    millions = model.num_parameters() / 1e6
    text = f"""# python benchmarks/saving.py

{datetime.date.today()}, {device}, {os.cpu_count()} CPU cores, torch {torch.__version__}.
GPT-2 of {millions:.0f} million parameters, AdamW, {SAVES} saves of {size:.2f} GB, {EVERY_MINUTES}
minutes apart.
Load of the machine, which others used too: {load:.1f}.

|  | seconds for a save | of the run's time |
|---|---|---|
{rows}
"""
    print(text)
    (given.out / "saving.md").write_text(text)


if __name__ == "__main__":
    main()
