"""python -m llmexp.evaluate run=outputs/<run>: the loss of a trained model on validation data, or
on a file."""

import json
import sys
from pathlib import Path
from typing import Any

from llmexp.command import arguments, command, model_folder, saved_settings
from llmexp.errors import RequestError


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
    if given["micro_batch_size"] < 1:
        raise RequestError(
            f"micro_batch_size={given['micro_batch_size']} does not hold: it must be at least 1"
        )
    run = Path(given["run"])
    folder = model_folder(run, given["which"])
    settings = saved_settings(run)

    from llmexp import data
    from llmexp.engine import perplexity
    from llmexp.model import load_folder, pick_device
    from llmexp.precision import Precision
    from llmexp.probe import try_out

    device = pick_device(given["device"])
    precision = Precision(name=given["precision"], tf32=False).choose(device)
    model, tokenizer = load_folder(folder, device)
    full_logits_because, unpacked_because = try_out(model, str(folder))
    if full_logits_because:
        tell(f"the loss takes full logits: {full_logits_because}")
    precision.cast_weights(model)
    part = {key: value for key, value in settings["data"].items() if not key.startswith("_")}
    if given["data"] is not None:
        part |= {"path": given["data"], "validation_path": given["data"]}
    examples = data.load(**part).tokenize(tokenizer, seed=settings["seed"]).validation
    batches = data.to_measure(
        examples,
        rows=given["micro_batch_size"],
        max_length=part["max_length"],
        pack=part["pack"] and not unpacked_because,
    )
    found = _validate(model, batches, precision, rows=given["micro_batch_size"])
    result = {
        "model": str(folder),
        "precision": precision.name,
        "examples": len(examples),
        "label_tokens": int(found.tokens.sum()),
        "eval/loss": found.loss,
        "eval/perplexity": perplexity(found.loss),
    }
    print(json.dumps(result, indent=2))


def _validate(model: Any, batches: Any, precision: Any, *, rows: int) -> Any:
    """Validate with at most `rows` rows per forward pass, fewer if memory runs out."""
    from llmexp import engine

    advice = "Other programs may hold memory of this device: close them, or try device=cpu."
    plan = engine.Plan(micro_batch_size=rows, advice=advice)
    return engine.validate(
        model, batches, precision, plan, on_event=lambda event: tell(event.line())
    )


def tell(line: str) -> None:
    """Say something beside the result, which alone is on stdout."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
