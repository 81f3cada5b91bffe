"""The main job, end to end, as a user sees it: python -m llmexp.train on a real file."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = (
    "model.architecture={n_layer:2,n_head:2,n_embd:32,n_positions:128,vocab_size:400}",
    "data.max_length=64",
    "samples.max_new_tokens=8",
    "train.log_every=2",
)
TEXT = ("data=text", "data.path=lines.txt", *SMALL, "logger=none")


def rows(folder: Path, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_a_run_leaves_what_the_design_says(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    names = {path.name for path in folder.iterdir()} - {".lock", ".outcome"}
    assert names == {
        *(".hydra", "metrics.jsonl", "timing.jsonl", "samples.jsonl", "report.md", "loss.png"),
        *("best", "final", "checkpoints", "validation_losses.safetensors"),
    }
    settings = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
    assert settings["data"]["path"] == "lines.txt"
    assert "data.path=lines.txt" in yaml.safe_load(
        (folder / ".hydra" / "overrides.yaml").read_text()
    )
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "| step |" in (folder / "report.md").read_text()


def test_the_loss_falls_on_data_it_has_not_seen(finished: tuple[Path, str]) -> None:
    losses = [r["eval/loss"] for r in rows(finished[0], "metrics.jsonl") if "eval/loss" in r]
    assert len(losses) == 5  # before training, and after each epoch
    assert losses[-1] < losses[0] - 1


def test_metrics_have_the_promised_names_and_nothing_that_differs_between_runs(
    finished: tuple[Path, str],
) -> None:
    folder, _ = finished
    names = {name for row in rows(folder, "metrics.jsonl") for name in row}
    assert {"train/loss", "train/learning_rate", "train/grad_norm", "train/epoch"} <= names
    assert {"train/tokens", "eval/loss", "eval/perplexity", "train/global_step"} <= names
    assert not [name for name in names if name.startswith(("perf/", "memory/"))]
    assert "perf/tokens_per_second" in {n for row in rows(folder, "timing.jsonl") for n in row}


def test_speed_use_of_the_machine_and_time_left(finished: tuple[Path, str]) -> None:
    folder, out = finished
    timing = rows(folder, "timing.jsonl")
    shares = [row["perf/mfu"] for row in timing if "perf/mfu" in row]
    assert shares
    assert all(0 < share < 1 for share in shares)
    times = [
        [row[f"perf/eta_seconds{end}"] for end in ("_low", "", "_high")] for row in timing[1:-1]
    ]
    assert times
    assert all(0 < low <= middle <= high for low, middle, high in times)
    assert "perf/eta_seconds" not in timing[-1]
    assert re.search(r"tokens/s  (about .*|\d+-\d+ (s|min)) left", out)
    report = (folder / "report.md").read_text()
    for words in ("tokens/s (", "% model FLOP utilisation (", "spent waiting for data ("):
        assert words in report


def test_what_a_person_sees_in_a_pipe(finished: tuple[Path, str]) -> None:
    folder, out = finished
    assert "\r" not in out
    assert "\x1b" not in out
    for part in (
        "plan",
        "parameters",
        "examples",
        "new best",
        "was",
        "perplexity",
        "python -m llmexp.generate",
    ):
        assert part in out
    assert str(folder.relative_to(folder.parents[1])) in out
    assert re.search(r"Epoch 4/4 .*train \d.*val \d", out)


def test_samples_are_written_at_each_validation(finished: tuple[Path, str]) -> None:
    written = rows(finished[0], "samples.jsonl")
    validated = {
        row["train/global_step"] for row in rows(finished[0], "metrics.jsonl") if "eval/loss" in row
    }
    assert {row["train/global_step"] for row in written} == validated - {0}  # fresh: noise at 0
    assert all(set(row) == {"train/global_step", "prompt", "text"} for row in written)


def test_best_and_final_load_in_a_process_that_never_imports_llmexp(
    finished: tuple[Path, str],
) -> None:
    code = """
import sys
sys.modules["llmexp"] = None  # importing it would fail
from transformers import GPT2LMHeadModel, GPT2Tokenizer
model = GPT2LMHeadModel.from_pretrained(sys.argv[1])
tokenizer = GPT2Tokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("the cat", return_tensors="pt")
out = model.generate(**ids, max_new_tokens=5, pad_token_id=tokenizer.eos_token_id)
print(tokenizer.decode(out[0]))
"""
    for name in ("best", "final"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(finished[0] / name)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("the cat")


def test_evaluate_finds_the_loss_of_the_best_validation(
    finished: tuple[Path, str], run: Run
) -> None:
    folder, _ = finished
    (folder.parents[1] / "lines.txt").exists()
    done = run("evaluate", f"run={folder}", f"data={folder.parents[1] / 'lines.txt'}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["eval/loss"] > 0


def test_generate_continues_the_prompt(finished: tuple[Path, str], run: Run) -> None:
    one = run("generate", f"run={finished[0]}", "prompt=the cat, (or: a bird)", "count=2")
    assert one.returncode == 0, one.stderr
    assert one.stdout.count("the cat, (or: a bird)") == 2
    assert (
        one.stdout
        == run("generate", f"run={finished[0]}", "prompt=the cat, (or: a bird)", "count=2").stdout
    )


def test_generate_and_evaluate_refuse_what_is_no_run(run: Run, tmp_path: Path) -> None:
    for command in ("generate", "evaluate"):
        for argument in (f"run={tmp_path}", f"run={tmp_path / 'nowhere'}", "runn=x", "nothing"):
            done = run(command, argument)
            assert done.returncode == 2, done.stderr
            assert "Traceback" not in done.stderr


def test_the_same_command_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        done = run("train", *TEXT, f"run.name={name}", "train.max_steps=6", "model.dropout=0.1")
        assert done.returncode == 0, done.stderr
    one, other = (tmp_path / "outputs" / name for name in ("a", "b"))
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert (one / "final" / "model.safetensors").read_bytes() == (
        other / "final" / "model.safetensors"
    ).read_bytes()


def test_a_run_that_goes_on_ends_as_one_that_never_stopped(run: Run, tmp_path: Path) -> None:
    settings = ("train.max_steps=8", "train.validate_every=10", "checkpoint.every_steps=3")
    whole = run("train", *TEXT, "run.name=whole", *settings)
    assert whole.returncode == 0, whole.stderr
    kept = sorted(path.name for path in (tmp_path / "outputs/whole/checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000008"]
    again = run("train", "resume=outputs/whole/checkpoints/step-00000006")
    before = (tmp_path / "outputs/whole/metrics.jsonl").read_bytes()
    assert again.returncode == 0, again.stderr
    assert "step 6" in again.stdout
    assert (tmp_path / "outputs/whole/metrics.jsonl").read_bytes() == before


def test_a_folder_with_a_run_is_not_overwritten(finished: tuple[Path, str], run: Run) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llmexp.train", "run.name=first", "logger=none"],
        cwd=finished[0].parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "resume=auto" in done.stderr


def test_pretrained_weights_from_a_folder_are_fine_tuned(
    finished: tuple[Path, str], run: Run, tmp_path: Path
) -> None:
    done = run(
        *("train", "model=gpt2", f"model.weights={finished[0] / 'best'}", "hw=cpu", "data=text"),
        *("data.path=lines.txt", "data.max_length=64", "train.max_steps=3", "logger=none"),
        "run.name=tuned",
    )
    assert done.returncode == 0, done.stderr
    first = rows(tmp_path / "outputs" / "tuned", "metrics.jsonl")[0]["eval/loss"]
    assert first < 5.5  # of fresh weights: log(400) = 6


def test_multirun_makes_a_folder_and_a_result_for_each_job(run: Run, tmp_path: Path) -> None:
    done = run("train", "-m", *TEXT, "train.max_steps=2", "optimizer.lr=1e-5,1e-2")
    assert done.returncode == 0, done.stderr
    folders = sorted((tmp_path / "multirun").glob("*/*/[01]"))
    assert len(folders) == 2
    rates = [
        yaml.safe_load((f / ".hydra/config.yaml").read_text())["optimizer"]["lr"] for f in folders
    ]
    assert rates == [1e-5, 1e-2]
    assert all((f / "final" / "model.safetensors").is_file() for f in folders)


def test_wrong_data_is_refused_before_a_model_is_built(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text("\n  \n\n")
    (tmp_path / "single.txt").write_text("just one line\n")
    for name in ("missing.txt", "empty.txt", "blank.txt", "single.txt"):
        done = run("train", "data=text", f"data.path={name}", "logger=none")
        assert done.returncode == 2, (name, done.stdout, done.stderr)
        assert name in done.stderr or name == "single.txt"
        assert "Traceback" not in done.stderr


def test_rows_longer_than_the_model_are_refused(run: Run) -> None:
    done = run("train", "data=text", "data.path=lines.txt", "data.max_length=4096", "logger=none")
    assert done.returncode == 2
    assert "data.max_length=512" in done.stderr


def test_a_schedule_that_never_reaches_its_peak_is_refused(run: Run) -> None:
    for wrong in (
        ["schedule.warmup=9"],
        ["schedule=wsd", "schedule.warmup=0.9", "schedule.decay=0.9"],
    ):
        done = run("train", *TEXT, "train.max_steps=4", *wrong)
        assert done.returncode == 2, done.stderr
        assert "peak learning rate" in done.stderr


def test_generate_refuses_numbers_that_make_no_sense(finished: tuple[Path, str], run: Run) -> None:
    done = run("generate", f"run={finished[0]}", "count=0", "max_new_tokens=-1", "temperature=-2")
    assert done.returncode == 2
    for key in ("count", "max_new_tokens", "temperature"):
        assert f"{key}=" in done.stderr


def test_no_logger_means_no_wandb(run: Run, tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text("raise RuntimeError('wandb was imported')")
    done = run("train", *TEXT, "train.max_steps=1")
    assert done.returncode == 0, done.stderr


def test_wandb_runs_offline_without_a_question(run: Run, tmp_path: Path) -> None:
    done = run("train", *TEXT[:-1], "train.max_steps=4", "run.name=seen")
    assert done.returncode == 0, done.stderr
    folder = next((tmp_path / "outputs/seen/wandb").glob("offline-run-*"))
    told = subprocess.run(
        [
            Path(sys.executable).parent / "wandb",
            "leet",
            "inspect",
            "--summary",
            "--json",
            str(folder),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    shown = json.loads(told.stdout)
    assert "eval/loss" in json.dumps(shown["summary"])
    assert "lines.txt" in json.dumps(shown["config"])
