"""python -m llmexp.evaluate run=outputs/<run>: the loss of a trained model on validation data, or
on a file."""

import json
import sys
from pathlib import Path

from llmexp.command import arguments, command, model_folder, saved_settings


def main() -> None:
    """Read the command line, load run and data, print loss and perplexity as one table."""
    command(_evaluate)


def _evaluate() -> None:
    given = arguments(
        sys.argv[1:],
        {
            "run": None,  # a run folder
            "which": "best",  # best or final
            "data": None,  # another file of the same kind; without it: the run's validation set
            "micro_batch_size": 8,  # rows per forward pass; changes the speed, not the result
            "precision": "fp32",
            "device": "auto",
        },
        required=("run",),
        usage=__doc__,
    )
    run = Path(given["run"])
    folder = model_folder(run, given["which"])
    settings = saved_settings(run)

    from llmexp import data, engine
    from llmexp.loss import probe_head
    from llmexp.model import load_folder, pick_device
    from llmexp.precision import Precision

    device = pick_device(given["device"])
    precision = Precision(name=given["precision"], tf32=False).choose(device)
    model, tokenizer = load_folder(folder, device)
    probe_head(model)
    part = {key: value for key, value in settings["data"].items() if not key.startswith("_")}
    if given["data"] is not None:
        part |= {"path": given["data"], "validation_path": given["data"]}
    examples = data.load(**part).tokenize(tokenizer, seed=settings["seed"]).validation
    batches = data.Batches(
        examples,
        batch_size=64,
        max_length=part["max_length"],
        seed=0,
        shuffle=False,
        pack=part["pack"] and data.can_pack(model)[0],
    )
    plan = engine.Plan(micro_batch_size=given["micro_batch_size"])
    found = engine.validate(model, batches, precision, plan)
    result = {
        "model": str(folder),
        "examples": len(examples),
        "label_tokens": int(found.tokens.sum()),
        "eval/loss": found.loss,
        "eval/perplexity": engine.perplexity(found.loss),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
