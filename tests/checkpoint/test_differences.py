"""What may differ between a run and its continuation, and how it is told."""

from typing import Any

import pytest
import torch

from llmexp import checkpoint

CONFIG: dict[str, Any] = {
    "seed": 42,
    "resume": None,
    "train": {"epochs": 3, "max_steps": None, "batch_size": 16, "micro_batch_size": "auto"},
    "optimizer": {"lr": 5e-5, "betas": (0.9, 0.95)},
    "data": {"path": "a.txt"},
    "checkpoint": {"keep": 2},
    "logger": {"project": "x"},
}


def changed(key: str, value: Any) -> dict[str, Any]:
    group, _, name = key.rpartition(".")
    return CONFIG | ({group: CONFIG[group] | {name: value}} if group else {key: value})


def test_the_same_config_has_no_differences() -> None:
    same = CONFIG | {"optimizer": {"betas": [0.9, 0.95], "lr": 5e-5}}
    assert checkpoint.config_differences(CONFIG, same) == ([], [])


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("train.epochs", 5, "train.epochs: 3 then, 5 now (the learning rate ahead"),
        ("resume", "auto", "resume: None then, auto now"),
        ("checkpoint.keep", 1, "checkpoint.keep: 2 then, 1 now"),
        ("logger.project", "y", "logger.project: x then, y now"),
        (
            "train.micro_batch_size",
            2,
            "train.micro_batch_size: auto then, 2 now (the same gradient",
        ),
    ],
)
def test_safe_changes_are_allowed_and_listed(key: str, value: Any, told: str) -> None:
    allowed, refused = checkpoint.config_differences(CONFIG, changed(key, value))
    assert refused == []
    assert allowed[0].startswith(told)
    assert len(allowed) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("train.batch_size", 8),
        ("train.epochs", 2),
        ("train.max_steps", 10),
        ("optimizer.lr", 1e-4),
        ("optimizer.betas", (0.9, 0.999)),
        ("data.path", "b.txt"),
        ("model", {"name": "gpt2"}),
        ("trainer", "new"),
    ],
)
def test_changes_to_what_is_learned_are_refused(key: str, value: Any) -> None:
    allowed, refused = checkpoint.config_differences(CONFIG, changed(key, value))
    assert allowed == []
    assert refused[0].startswith(key)
    assert " then, " in refused[0]


def test_a_longer_limit_may_replace_a_shorter_one() -> None:
    limited = changed("train.max_steps", 10)
    assert checkpoint.config_differences(limited, CONFIG)[1] == []
    assert checkpoint.config_differences(limited, changed("train.max_steps", 20))[1] == []
    assert checkpoint.config_differences(limited, changed("train.max_steps", 5))[1] != []


def test_the_environment_names_what_bits_depend_on() -> None:
    found = checkpoint.environment(torch.nn.Linear(1, 1))
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["dtype"] == "float32"
    assert found.keys() == {"torch", "transformers", "python", "device", "threads", "dtype"}


def test_a_changed_environment_is_told_in_words() -> None:
    found = checkpoint.environment(torch.nn.Linear(1, 1))
    assert checkpoint.environment_differences(found, found) == []
    assert checkpoint.environment_differences(
        found | {"torch": "2.13.0"}, found | {"torch": "2.12.0"}
    ) == ["torch 2.13.0 then, 2.12.0 now: the resume is correct, not bitwise"]
