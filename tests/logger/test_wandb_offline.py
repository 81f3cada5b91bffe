"""W&B with no account and no network, and what is uploaded of it later."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_run import append, cut, fragments, inspect, run_info, sync, train
from wandb_server import WandbServer

from llmexp.errors import RequestError
from llmexp.logger.wandb import Wandb

Said = Callable[[], list[str]]


def test_without_a_key_a_run_is_offline_and_one_line_says_how_to_sync(
    tmp_path: Path, said: Said
) -> None:
    train(Wandb(), run_info(tmp_path / "run"), range(1, 4))
    [fragment] = fragments(tmp_path / "run")
    assert said() == [
        f"W&B: offline (no API key); to upload later: wandb sync {fragment.relative_to(tmp_path)}"
    ]


def test_an_offline_run_holds_config_metrics_summary_samples_and_pictures(tmp_path: Path) -> None:
    from matplotlib.image import imsave

    folder = tmp_path / "run"
    info = run_info(folder, group="sweep-1", job_type="trial")
    picture, report = folder / "loss.png", folder / "report.md"
    imsave(picture, [[0.0, 1.0]])
    report.write_text("# What happened <here>")
    logger = Wandb(tags=["mine"])
    logger.start(info)
    for step, loss in ((5, 3.0), (10, 2.0), (15, 2.5)):
        logger.log(step, {"train/loss": loss})
        logger.log(step, {"eval/loss": loss})
    logger.samples(15, [{"prompt": "<b>The", "text": "answer\n15"}])
    logger.media("loss.png", picture)
    logger.media("report.md", report)
    logger.finish("finished", {"best/eval_loss": 2.0})

    [summary] = inspect(folder, "--summary")
    assert summary["config"] == info.config
    assert summary["tags"] == ["gpt2-nano", "sample", "mine"]
    assert (summary["name"], summary["project"], summary["exit_code"]) == ("lr=1e-5", "llmexp", 0)
    numbers = summary["summary"]
    assert numbers["eval/loss"] == {"min": 2.0}
    assert numbers["best/eval_loss"] == 2.0
    assert numbers["state"] == "finished"
    rows = [r["history"]["item"] for r in inspect(folder) if r["type"] == "history"]
    assert [row["train/global_step"] for row in rows] == [5, 10, 15]
    assert [row["_step"] for row in rows] == [5, 10, 15]
    assert [row["eval/loss"] for row in rows] == [3.0, 2.0, 2.5]
    [told] = [r["run"] for r in inspect(folder) if r["type"] == "run"]
    assert (told["run_group"], told["job_type"]) == ("sweep-1", "trial")
    files = fragments(folder)[0] / "files"
    assert "&lt;b&gt;The" in (files / numbers["samples"]["path"]).read_text()
    assert "&lt;here&gt;" in (files / numbers["report.md"]["path"]).read_text()
    assert (files / numbers["loss.png"]["path"]).read_bytes() == picture.read_bytes()


@pytest.mark.parametrize(
    ("state", "exit_code", "tags"),
    [("crashed", 1, []), ("pruned", 0, ["pruned"])],
)
def test_a_run_ends_in_its_state(
    tmp_path: Path, state: str, exit_code: int, tags: list[str]
) -> None:
    train(Wandb(), run_info(tmp_path / "run", tags=()), range(1, 2), state=state)
    [summary] = inspect(tmp_path / "run", "--summary")
    assert summary["exit_code"] == exit_code
    assert summary["summary"]["state"] == state
    assert (summary["tags"] or []) == tags


def test_disabled_leaves_nothing(tmp_path: Path, said: Said) -> None:
    train(Wandb(mode="disabled"), run_info(tmp_path / "run"), range(1, 4))
    assert not (tmp_path / "run" / "wandb").exists()
    assert said() == ["W&B: disabled"]


def test_a_resumed_offline_run_is_whole_in_its_newest_fragment(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(Wandb(), run_info(folder), range(1, 13))
    cut(folder, 8)
    append(folder / "metrics.jsonl", {"train/global_step": 8, "train/grad_norm": "inf"})
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write('{"train/global_step": 9, "train/lo')
    train(Wandb(), run_info(folder, resumed_from_step=8), range(9, 21))

    rows = [r["history"]["item"] for r in inspect(folder) if r["type"] == "history"]
    assert [row["_step"] for row in rows] == list(range(1, 21))
    assert [row["train/loss"] for row in rows] == [4 - step / 100 for step in range(1, 21)]
    assert [row["perf/seconds"] for row in rows] == [step / 10 for step in range(1, 21)]
    assert [row["_step"] for row in rows if "samples.path" in row] == [5, 10, 15, 20]
    assert rows[7]["train/grad_norm"] == "Infinity"
    assert len(list((folder / "wandb" / "superseded").iterdir())) == 1


def test_a_run_that_begins_again_leaves_one_fragment(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(Wandb(), run_info(folder), range(1, 4))
    time.sleep(1)  # wandb names its folders by the second
    train(Wandb(), run_info(folder), range(1, 3))
    rows = [r["history"]["item"] for r in inspect(folder) if r["type"] == "history"]
    assert [row["_step"] for row in rows] == [1, 2]


def test_two_runs_in_one_process_are_two_runs(tmp_path: Path) -> None:
    exits = sys.exit, sys.excepthook
    train(Wandb(), run_info(tmp_path / "0", id="first000", config={"x": 1}), range(1, 4))
    train(Wandb(), run_info(tmp_path / "1", id="second00", config={"x": 2}), range(1, 3))
    shown = [inspect(tmp_path / name, "--summary")[0] for name in ("0", "1")]
    assert [run["run_id"] for run in shown] == ["first000", "second00"]
    assert [run["config"] for run in shown] == [{"x": 1}, {"x": 2}]
    assert [run["step"] for run in shown] == [3, 2]
    assert (sys.exit, sys.excepthook) == exits  # else a crash prints its traceback once per run


def test_sync_uploads_the_steps_and_samples_of_a_resumed_run(
    tmp_path: Path, server: WandbServer, said: Said
) -> None:
    """Whatever the server already has of it: an online start, or an older fragment."""
    folder = tmp_path / "run"
    train(Wandb(), run_info(folder), range(1, 7))
    assert server.runs["run00001"].column("_step") == list(range(1, 7))
    cut(folder, 5)
    train(Wandb(mode="offline"), run_info(folder, resumed_from_step=5), range(6, 11))
    sync(said()[-1])
    run = server.runs["run00001"]
    assert run.column("_step") == list(range(1, 11))
    assert len(run.column("samples")) == 2
    assert sum(name.endswith(".html") for name in run.files) == 2
    assert run.config["optimizer"]["value"] == {"lr": 1e-5}
    assert run.exit_code == 0


@pytest.mark.slow
def test_a_killed_run_keeps_what_it_logged_two_seconds_before(tmp_path: Path) -> None:
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from toy_run import *\n"
        "from llmexp.logger.wandb import Wandb\n"
        "logger = Wandb(); logger.start(run_info(Path('run')))\n"
        "[train_step(logger, Path('run'), step) for step in range(1, 7)]\n"
        "logger.log(7, {})\n"
        "while not list(Path('run').glob('wandb/*/*.wandb')): time.sleep(0.1)\n"
        "time.sleep(6); print('now', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(Path(__file__).parent)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"now\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    rows = [r["history"]["item"] for r in inspect(tmp_path / "run") if r["type"] == "history"]
    assert [row["_step"] for row in rows] == list(range(1, 7))


def test_a_terminal_is_asked_nothing(tmp_path: Path) -> None:
    """With a person at the keyboard wandb would ask for a key."""
    program = (
        "import sys, logging; sys.path.insert(0, sys.argv[1])\n"
        "logging.basicConfig(level='INFO', format='%(message)s')\n"
        "from pathlib import Path\n"
        "from toy_run import *\n"
        "from llmexp.logger.wandb import Wandb\n"
        "train(Wandb(), run_info(Path('run')), range(1, 3))\n"
    )
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(Path(__file__).parent)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    assert child.wait(timeout=120) == 0
    lines = os.read(ours, 10_000).decode().splitlines()
    os.close(ours)
    [line] = [line for line in lines if "closing its run, for" not in line]  # that a slow one says
    assert line.startswith("W&B: offline (no API key)")


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(RequestError, match="use online, offline, disabled"):
        Wandb(mode="on")
    with pytest.raises(RequestError, match="W&B takes none of"):
        Wandb(project="me/llmexp")


def test_the_silent_logger_never_imports_wandb(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from toy_run import *\n"
        "train(Logger(), run_info(Path('run')), range(1, 6))\n"
        "assert 'wandb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, str(Path(__file__).parent)], check=True)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
