"""Keep secrets out of what may leave the machine: W&B and TensorBoard files."""

import os
import re
from collections.abc import Iterator, Mapping

HIDDEN = "***"
# whole words of a key, so that max_new_tokens, tokenizer and pad_token_id stay readable
_SECRET_NAME = re.compile(
    r"(^|[^a-z])(token|secret|password|passwd|passphrase|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|credentials?|auth)$",
    re.IGNORECASE,
)
_SECRET_SHAPE = re.compile(
    r"\b(?:hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[abp]-|AKIA|wandb_v1_)[A-Za-z0-9_-]{8,}"
    r"|(?<=://)[^/@\s]+(?=@)"
)
_MIN_SECRET = 8


def is_secret_name(name: str) -> bool:
    """Tell whether a key or a variable of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def redact(value: object) -> object:
    """Copy plain data with its secrets replaced: told by key, by shape, or by the environment.

    Mappings, lists and tuples are walked; what is not a plain scalar either becomes its text.
    """
    secrets = sorted(_environment_secrets(), key=len, reverse=True)
    return _copy(value, secrets)


def redact_argv(argv: list[str]) -> list[str]:
    """Copy a command line with every secret replaced, `key=value` and `--key value` alike."""
    shown = [str(text) for text in argv]
    for i, text in enumerate(shown):
        name, equals, _ = text.partition("=")
        if equals and is_secret_name(name.lstrip("-+~")):
            shown[i] = f"{name}={HIDDEN}"
        elif i and shown[i - 1].startswith("--") and is_secret_name(shown[i - 1]):
            shown[i] = HIDDEN
    return [str(redact(text)) for text in shown]


def _copy(value: object, secrets: list[str]) -> object:
    if isinstance(value, Mapping):
        return {
            str(key): HIDDEN if held and is_secret_name(str(key)) else _copy(held, secrets)
            for key, held in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_copy(item, secrets) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return _SECRET_SHAPE.sub(HIDDEN, text)


def _environment_secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        if is_secret_name(name) and len(value) >= _MIN_SECRET:
            yield value
