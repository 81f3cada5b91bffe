"""What may leave the machine, and what may not."""

from pathlib import Path

import pytest

from llmexp.logger.redact import HIDDEN, is_secret_name, redact, redact_argv


@pytest.mark.parametrize(
    "name", ["token", "HF_TOKEN", "hub.token", "api_key", "WANDB_API_KEY", "db-password", "apikey"]
)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert is_secret_name(name)
    assert redact({name: "x"}) == {name: HIDDEN}


@pytest.mark.parametrize(
    "name",
    ["pad_token_id", "tokenizer", "max_new_tokens", "tokens", "eos_token_id", "monkey", "author"],
)
def test_what_training_calls_its_own_is_shown(name: str) -> None:
    assert redact({name: 3}) == {name: 3}


def test_a_secret_is_known_by_its_shape_and_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_SECRET", "open sesame")
    assert redact("--key=hf_abcdefghijkl") == f"--key={HIDDEN}"
    assert redact("https://me:pass@host/path") == f"https://{HIDDEN}@host/path"
    assert redact(["say open sesame twice"]) == [f"say {HIDDEN} twice"]


def test_data_keeps_its_form() -> None:
    data = {"a": [1, 2.5, None, True], "b": {"c": "text", 4: ("x",)}, "path": Path("out/best")}
    assert redact(data) == {
        "a": [1, 2.5, None, True],
        "b": {"c": "text", "4": ["x"]},
        "path": "out/best",
    }
    assert redact({"token": None}) == {"token": None}


def test_a_command_line_keeps_everything_but_its_secrets() -> None:
    given = ["train", "optimizer.lr=1e-5", "+hub.token=abc", "--api-key", "abc", "--seed", "3"]
    shown = [
        "train",
        "optimizer.lr=1e-5",
        f"+hub.token={HIDDEN}",
        "--api-key",
        HIDDEN,
        "--seed",
        "3",
    ]
    assert redact_argv(given) == shown
