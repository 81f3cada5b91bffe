"""python -m llmexp.generate run=outputs/<run> prompt="Machine learning is": text from a trained
model."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmexp.command import arguments, command, model_folder
from llmexp.config import refuse
from llmexp.errors import RunError


def main() -> None:
    """Read the command line, load the model once, print one continuation after another."""
    command(_generate)


def _generate() -> None:
    given = arguments(
        sys.argv[1:],
        {
            "run": None,  # a run folder, or any folder with a Hugging Face model in it
            "prompt": "Machine learning is",
            "which": "best",  # best or final
            "count": 3,
            "max_new_tokens": 60,
            "temperature": 0.8,  # 0: always the likeliest token
            "seed": 42,
            "device": "auto",
        },
        required=("run",),
        usage=__doc__,
    )
    refuse(
        [
            f"{key}={given[key]} does not hold: it must be at least {least}"
            for key, least in (("count", 1), ("max_new_tokens", 1), ("temperature", 0), ("seed", 0))
            if not given[key] >= least
        ]
    )
    folder = model_folder(Path(given["run"]), given["which"])
    from llmexp.model import load_folder, pick_device

    device = pick_device(given["device"])
    with told_if_out_of_memory(given["max_new_tokens"]):
        model, tokenizer = load_folder(folder, device)
        asked = {key: given[key] for key in ("prompt", "max_new_tokens")}
        for line in shortened(model, tokenizer, **asked):
            print(line, file=sys.stderr)
        rows = continuations(
            model,
            tokenizer,
            [given["prompt"]] * given["count"],
            max_new_tokens=given["max_new_tokens"],
            temperature=given["temperature"],
            seed=given["seed"],
        )
    for row in rows:
        print(f"{row['prompt']}{row['text']}\n")


@contextmanager
def told_if_out_of_memory(max_new_tokens: int) -> Iterator[None]:
    """Tell in words that memory ran out. Raises RunError, with what to try."""
    from llmexp.memory.oom import is_out_of_memory
    from llmexp.model import first_line

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"Out of memory while generating max_new_tokens={max_new_tokens} "
            f"({first_line(error)}). Other programs may hold memory of this device: close them, "
            "or try fewer max_new_tokens, a shorter prompt, or device=cpu."
        ) from None


def shortened(model: Any, tokenizer: Any, *, prompt: str, max_new_tokens: int) -> list[str]:
    """Say what the model's positions leave of the prompt and of `max_new_tokens`, if not all."""
    limit = positions(model)
    length = len(tokenizer(prompt, add_special_tokens=False).input_ids) or 1
    room = max(1, limit - length)
    lines = []
    if length > limit - 1:
        lines.append(
            f"the prompt has {length} tokens, the model {limit} positions: its last "
            f"{limit - 1} are used"
        )
    if max_new_tokens > room:
        lines.append(
            f"max_new_tokens={max_new_tokens} is cut to {room}: the model has {limit} "
            f"positions, the prompt takes {min(length, limit - 1)}"
        )
    return lines


def positions(model: Any) -> int:
    """Return how many tokens the model has positions for: without a limit, more than any text."""
    return getattr(model.config, "max_position_embeddings", None) or 10**9


def continuations(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[dict[str, str]]:
    """Continue each prompt until end-of-text or `max_new_tokens`; deterministic for a seed.

    `temperature` 0 takes the likeliest token every time. Returns rows of prompt and text.
    """
    import torch

    device = next(model.parameters()).device
    limit = positions(model)
    training = model.training
    model.eval()
    rows = []
    with torch.no_grad():
        for number, prompt in enumerate(prompts):
            ids = tokenizer(prompt, add_special_tokens=False).input_ids or [tokenizer.eos_token_id]
            ids = torch.tensor([ids[-(limit - 1) :]], device=device)
            torch.manual_seed(seed + number)
            sampling = (
                {"do_sample": True, "temperature": temperature, "top_k": 50}
                if temperature
                else {"do_sample": False}
            )
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max(1, min(max_new_tokens, limit - ids.shape[1])),
                pad_token_id=tokenizer.eos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                use_cache=True,
                **sampling,
            )
            text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
            rows.append({"prompt": prompt, "text": text})
    model.train(training)
    return rows


if __name__ == "__main__":
    main()
