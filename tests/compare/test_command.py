"""python -m llmexp.compare as a user types it: the table, its other forms, and bad input."""

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmexp import durable, outcome
from llmexp.compare import runs, table

Make = Callable[..., Path]
Losses = Callable[..., Any]


def compare(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command here."""
    return subprocess.run(
        [sys.executable, "-m", "llmexp.compare", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Return the error of a request that is wrong, told in words."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_the_table_says_what_differs_and_who_is_best(make: Make, losses_of: Losses) -> None:
    make("slow", lr=1e-4, end=2.5, losses=losses_of(0.5, seed=1))
    make("quick", lr=1e-3, end=2.0, losses=losses_of(0.0, seed=2))
    done = compare("outputs/slow", "outputs/quick")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0][:4] == ["run", "state", "best", "loss"]
    assert lines[0][-1] == "optimizer.lr"  # and nothing that is the same in both
    assert lines[2][:4] == ["quick", "finished", "2.118", "100"]
    assert lines[2][4:] == ["2.118", "2.018", "100", "5,075", "3.250", "0.001"]
    assert lines[3][0] == "slow"
    assert "quick is better than slow by 0.4" in done.stdout
    assert Path("compare.html").is_file()
    assert "compare.html" in done.stderr


def test_a_sweep_is_one_folder_and_keeps_its_page(make: Make) -> None:
    for number in (0, 2, 10):
        make(f"sweep/{number}", lr=10**-number)
    Path("outputs/sweep/optimization_results.yaml").write_text("study: lr-nano\n")
    done = compare("outputs/sweep")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:5]] == ["0", "2", "10"]
    assert "project llmexp, group lr-nano" in done.stdout
    assert Path("outputs/sweep/compare.html").is_file()


def test_the_other_forms(make: Make, losses_of: Losses) -> None:
    make("a", lr=1e-4, losses=losses_of(0.0))
    make("b", lr=1e-3, losses=losses_of(0.0))
    rows = list(csv.DictReader(compare("outputs", "--csv").stdout.splitlines()))
    assert [row["optimizer.lr"] for row in rows] == ["0.0001", "0.001"]
    assert float(rows[0]["best loss"]) == pytest.approx(2.1178, abs=1e-3)
    told = json.loads(compare("outputs", "--json").stdout)
    assert [run["settings"] for run in told["runs"]] == [
        {"optimizer.lr": 0.0001},
        {"optimizer.lr": 0.001},
    ]
    assert told["pairs"][0]["examples"] == 200
    assert "told apart" in told["pairs"][0]["says"]
    assert "| a | finished |" in compare("outputs", "--markdown").stdout
    elsewhere = compare("outputs", "--json", "--html", "page.html")
    assert elsewhere.returncode == 0 and Path("page.html").is_file()


def test_a_folder_that_is_no_run_is_refused(make: Make, tmp_path: Path) -> None:
    make("a")
    (tmp_path / "empty").mkdir()
    told = refused(compare("outputs/a", "empty", "nowhere", "outputs/a/metrics.jsonl"))
    assert "empty holds no run" in told
    assert "nowhere does not exist" in told
    assert "outputs/a/metrics.jsonl is a file" in told
    assert not Path("compare.html").exists()
    refused(compare())


def test_runs_with_nothing_in_common_are_refused(make: Make) -> None:
    make("a")
    other = make("other")
    durable.write_text(other / "metrics.jsonl", '{"train/global_step": 1, "reward": 1.0}\n')
    assert "nothing in common" in refused(compare("outputs"))


@pytest.mark.parametrize("text", ["", "a: [", "just words", "\x00", "- 1"])
def test_settings_that_cannot_be_read_are_refused(make: Make, text: str) -> None:
    folder = make("a")
    (folder / ".hydra/config.yaml").write_text(text)
    assert "config.yaml" in refused(compare("outputs/a"))


def test_a_half_written_line_is_skipped_and_counted(make: Make) -> None:
    folder = make("a")
    make("b")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b"nonsense\n[1]\n" + b"[" * 100_000 + b'\n{"train/global_step": 110, "train/lo')
    done = compare("outputs")
    assert done.returncode == 0, done.stderr
    assert "a: 4 damaged lines of metrics.jsonl skipped" in done.stdout


def test_hostile_values_are_no_error_and_drive_no_terminal(make: Make) -> None:
    folder = make("a", settings={"x": {"y": "\x1b[2J|<b>"}, 3: [1, {"z": float("nan")}]})
    make("b", text="\x1b]0;title\x07")
    with (folder / "metrics.jsonl").open("a") as file:
        for value in ('"nan"', "NaN", "null", "[]", "{}", "1e999", '"x"', "true"):
            file.write(f'{{"train/global_step": 101, "train/loss": {value}}}\n')
            file.write(f'{{"train/global_step": {value}, "eval/loss": {value}}}\n')
            sample = f'{{"train/global_step": {value}, "prompt": {value}, "text": {value}}}\n'
            durable.write_text(folder / "samples.jsonl", sample)
    for form in ([], ["--csv"], ["--json"], ["--markdown"]):
        done = compare("outputs", *form)
        assert done.returncode == 0, done.stderr
        if form != ["--csv"]:
            assert "\x1b" not in done.stdout
    assert "\x1b" not in Path("outputs/compare.html").read_text()


def test_secrets_stay_where_they_are(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2 + "01234567")
    key = os.environ["WANDB_API_KEY"]
    make("a", settings={"x": {"note": f"my {key}", "api_key": "hunter2hunter2"}})
    make("b")
    done = compare("outputs", "--json")
    for text in (done.stdout, Path("outputs/compare.html").read_text()):
        assert key not in text
        assert "hunter2" not in text


def test_what_a_run_is_doing_or_how_it_ended(make: Make) -> None:
    for stopped in ("patience", "pruned", "signal"):
        outcome.write(make(stopped), stopped, 100)
    make("done")
    dead = {"pid": os.getpid(), "host": socket.gethostname()}  # and its number is taken again
    for name, signed in (("left", dead), ("far", dead | {"host": "another"})):
        (make(name, finished=False) / ".lock").write_text(json.dumps(signed))
    going = make("going")
    with durable.Lock(going):
        states = {run.name: run.state for run in runs.read(runs.find([Path("outputs")]))}
    assert states == {
        "patience": "stopped early",
        "pruned": "pruned",
        "signal": "stopped by a signal",
        "done": "finished",
        "left": "killed",
        "far": "killed or running",
        "going": "running",
    }


def test_a_run_that_failed_says_why(make: Make) -> None:
    make("a")
    failed = make("b", finished=False)
    with pytest.raises(ZeroDivisionError), outcome.told_if_failed(failed):
        raise ZeroDivisionError("no \x1b[2J number\nat all")
    done = compare("outputs", "--html", "page.html")
    assert "  b failed: ZeroDivisionError: no \\x1b[2J number\n" in done.stdout
    assert "ZeroDivisionError: no" in Path("page.html").read_text()
    told = {run["run"]: run for run in json.loads(compare("outputs", "--json").stdout)["runs"]}
    assert told["a"]["error"] is None
    assert told["b"]["state"] == "failed"
    assert told["b"]["error"].startswith("ZeroDivisionError: no")


@pytest.mark.parametrize("left", ["", "[1]", "{}", '{"outcome": ["failed"]}', '{"outcome": "ok"}'])
def test_an_outcome_that_cannot_be_read_says_nothing(make: Make, left: str) -> None:
    folder = make("a")
    (folder / outcome.FILE).write_text(left)
    assert runs.end_of(folder) == ("killed", None)


def test_one_run_alone_and_one_that_has_only_begun(make: Make) -> None:
    folder = make("alone")
    assert "alone" in compare("outputs/alone").stdout
    (folder / "metrics.jsonl").write_text("")
    assert compare("outputs/alone").returncode == 0


def test_many_differences_have_a_table_of_their_own(make: Make) -> None:
    make("a", settings={"data": {name: 1 for name in "vwxyz"}})
    make("b", settings={"data": {name: 2 for name in "vwxyz"}})
    text = table.text(table.comparison(runs.read(runs.find([Path("outputs")]))))
    assert "What differs:" in text
    assert "data.z" in text


def test_offline_wandb_files_are_named(make: Make) -> None:
    folder = make("a fine run")
    (folder / "wandb" / "offline-run-1").mkdir(parents=True)
    assert f"wandb sync '{folder}'/wandb/offline-run-*" in compare("outputs/a fine run").stdout


def test_it_needs_no_torch(make: Make) -> None:
    make("a")
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['compare', 'outputs/a']\n"
        "from llmexp.compare.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_is_itself_under_every_name(make: Make, tmp_path: Path) -> None:
    folder = make("a")
    (tmp_path / "link").symlink_to(folder)
    rows = compare("outputs/a", str(folder.resolve()), "outputs/../link", "--csv").stdout
    assert [row["run"] for row in csv.DictReader(rows.splitlines())] == ["a"]


def test_json_is_json_whatever_the_settings_hold(make: Make) -> None:
    make("a", settings={"train": {"max_grad_norm": float("inf")}})
    make("b", settings={"train": {"max_grad_norm": 1.0, "x": [float("nan")]}})
    told = json.loads(compare("outputs", "--json").stdout, parse_constant=pytest.fail)
    assert [run["settings"]["train.max_grad_norm"] for run in told["runs"]] == ["inf", 1.0]


def test_a_name_stands_on_one_line_and_in_its_direction(make: Make) -> None:
    make("new\nline")
    make("\u202eexe.txt")
    for form in ([], ["--markdown"]):
        text = compare("outputs", *form).stdout
        assert "new line" in text
        assert "\\u202eexe.txt" in text
    page = Path("outputs/compare.html").read_text()
    assert '"name": "new line"' in page
    assert '"name": "\\\\u202eexe.txt"' in page


def test_a_terminal_that_cannot_say_a_name_is_told_of_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("café")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert "caf\\xe9" in compare("outputs/café").stdout


def test_long_settings_that_differ_at_their_end_look_different(make: Make) -> None:
    for name in "ab":
        make(name, settings={"data": {"path": f"/{'a-long-folder/' * 5}{name}.txt"}})
    text = compare("outputs").stdout
    assert "-folder/a.txt" in text
    assert "-folder/b.txt" in text
    assert f"{'a-long-folder/' * 5}b.txt" in Path("outputs/compare.html").read_text()


def test_runs_that_are_not_held_against_the_best_are_told_of(
    make: Make, losses_of: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        make(name, losses=losses_of(0.0))
    monkeypatch.setattr(table, "PAIRS", 2)
    text = table.text(table.comparison(runs.read(runs.find([Path("outputs")]))))
    assert text.count("told apart") == 2
    assert "only the best 3 are held against the best one" in text


def test_what_may_not_be_read_is_an_error_in_words(make: Make) -> None:
    folder = make("a")
    (folder / "metrics.jsonl").chmod(0)
    if os.access(folder / "metrics.jsonl", os.R_OK):  # root may read anything
        pytest.skip("nothing is forbidden here")
    assert "metrics.jsonl cannot be read: Permission denied" in refused(compare("outputs/a"))
