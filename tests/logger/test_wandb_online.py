"""W&B with a server: what arrives, and every way in which the server can fail a run.

No case may raise, ask, lose a step of the run's own files, or keep the run waiting.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_run import cut, fragments, inspect, run_info, sync, train, train_step
from wandb_server import WandbServer

import llmexp.logger.wandb
from llmexp.logger import RunInfo
from llmexp.logger.wandb import Wandb

Said = Callable[[], list[str]]
CANARY = "canary-5f0c9d"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up after seconds where a person would wait a minute."""
    monkeypatch.setattr(llmexp.logger.wandb, "FINISH_SECONDS", 2)
    monkeypatch.setattr(llmexp.logger.wandb, "INIT_SECONDS", 4)


def test_an_online_run_arrives_whole(tmp_path: Path, server: WandbServer, said: Said) -> None:
    train(Wandb(group="mine"), run_info(tmp_path / "run", job_type="trial"), range(1, 11))
    run = server.runs["run00001"]
    assert run.column("_step") == list(range(1, 11))
    assert run.column("train/global_step") == list(range(1, 11))
    assert run.column("train/loss") == [4 - step / 100 for step in range(1, 11)]
    assert len(run.column("samples")) == 2
    assert run.config["optimizer"]["value"] == {"lr": 1e-5}
    assert run.summary["eval/loss"] == {"min": 2.0}
    assert run.summary["best/eval_loss"] == 2.0
    assert (run.project, run.exit_code) == ("llmexp", 0)
    assert run.about["displayName"] == "lr=1e-5"
    assert (run.about["groupName"], run.about["jobType"]) == ("mine", "trial")
    assert run.about["tags"] == ["gpt2-nano", "sample"]
    assert said() == [f"W&B: online, {server.url}/local/llmexp/runs/run00001"]


def test_a_key_that_wandb_login_has_stored_is_found(
    tmp_path: Path, server: WandbServer, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = server.environment()["WANDB_API_KEY"]
    monkeypatch.delenv("WANDB_API_KEY")
    host = server.url.removeprefix("http://")
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text(f"machine {host}\n  login user\n  password {key}\n")
    netrc.chmod(0o600)
    train(Wandb(), run_info(tmp_path / "run"), range(1, 3))
    assert said()[0].startswith("W&B: online")


def test_a_run_resumed_online_has_no_step_twice_and_none_missing(
    tmp_path: Path, server: WandbServer
) -> None:
    """The run died at step 12 with its last checkpoint at 9; W&B had received steps 1 to 6."""
    folder = tmp_path / "run"
    train(Wandb(), run_info(folder), range(1, 7))
    begun = server.runs["run00001"]
    for step in range(7, 13):
        train_step(llmexp.logger.Logger(), folder, step)
    cut(folder, 9)
    train(Wandb(), run_info(folder, resumed_from_step=9), range(10, 16))
    run = server.runs["run00001"]
    assert run is begun  # continued, not replaced
    assert run.column("_step") == list(range(1, 16))
    assert run.column("train/loss") == [4 - step / 100 for step in range(1, 16)]
    assert len(run.column("samples")) == 3


def test_a_step_that_w_and_b_has_beyond_the_checkpoint_is_not_shown_twice(
    tmp_path: Path, server: WandbServer
) -> None:
    folder = tmp_path / "run"
    train(Wandb(), run_info(folder), range(1, 13))
    cut(folder, 9)
    train(Wandb(), run_info(folder, resumed_from_step=9), range(10, 16))
    run = server.runs["run00001"]
    assert run.column("_step") == list(range(1, 16))
    uploaded = [name.split("_")[1] for name in run.files if name.endswith(".html")]
    assert sorted(uploaded) == ["10", "15", "5"]


def test_a_run_resumed_at_its_end_still_shows_its_report(
    tmp_path: Path, server: WandbServer
) -> None:
    folder = tmp_path / "run"
    train(Wandb(), run_info(folder), range(1, 4))
    (folder / "report.md").write_text("# What happened")
    logger = Wandb()
    logger.start(run_info(folder, resumed_from_step=3))
    logger.media("report.md", folder / "report.md")
    logger.finish("finished", {})
    run = server.runs["run00001"]
    assert len(run.column("report.md")) == 1
    assert run.column("train/loss") == [4 - step / 100 for step in range(1, 4)]


def test_an_outage_in_the_middle_costs_no_step_and_loses_none(
    tmp_path: Path, server: WandbServer
) -> None:
    logger, info, slowest = Wandb(), run_info(tmp_path / "run"), 0.0
    logger.start(info)
    for step in range(1, 31):
        if step == 10:
            _wait_for(lambda: "run00001" in server.runs)
            server.fault = 500
        if step == 20:
            time.sleep(0.5)
            server.fault = None
        begun = time.perf_counter()
        train_step(logger, info.dir, step)
        slowest = max(slowest, time.perf_counter() - begun)
    logger.finish("finished", {})
    assert server.runs["run00001"].column("_step") == list(range(1, 31))
    assert slowest < 1  # on a busy machine; to wait for the server would take longer


@pytest.mark.parametrize("fault", [401, b"{}", b"<html>log in to the hotel</html>"])
def test_a_server_that_makes_no_sense_at_the_start_means_offline(
    tmp_path: Path, server: WandbServer, said: Said, fault: int | bytes
) -> None:
    server.fault = fault
    train(Wandb(), run_info(tmp_path / "run"), range(1, 6))
    assert len(said()) == 1
    assert said()[0].startswith("W&B: offline (Failed to authenticate")
    assert inspect(tmp_path / "run", "--summary")[0]["step"] == 5


@pytest.mark.parametrize(
    "fault",
    [
        "refused",
        pytest.param("silence", marks=pytest.mark.slow),
        pytest.param(500, marks=pytest.mark.slow),
    ],
)
def test_a_server_that_is_dead_at_the_start_means_offline(
    tmp_path: Path, server: WandbServer, said: Said, fault: str | int
) -> None:
    if fault == "refused":
        server.stop()
    else:
        server.fault = fault
    import wandb  # noqa: F401  a second or more, which the server cannot help

    logger, begun = Wandb(), time.perf_counter()
    logger.start(run_info(tmp_path / "run"))
    assert time.perf_counter() - begun < 2
    for step in range(1, 6):
        train_step(logger, tmp_path / "run", step)
    assert time.perf_counter() - begun < 2
    logger.finish("finished", {})
    assert time.perf_counter() - begun < 15
    assert any(line.startswith("W&B: offline (the server does not answer)") for line in said())
    assert inspect(tmp_path / "run", "--summary")[0]["step"] == 5


def test_a_server_that_is_dead_at_the_finish_is_given_up_and_the_run_can_be_synced(
    tmp_path: Path, server: WandbServer, said: Said, hurried: None
) -> None:
    logger, info = Wandb(), run_info(tmp_path / "run")
    logger.start(info)
    _wait_for(lambda: bool(said()))
    server.fault = 500
    for step in range(1, 6):
        train_step(logger, info.dir, step)
    begun = time.perf_counter()
    logger.finish("finished", {})
    assert time.perf_counter() - begun < 5
    [fragment] = fragments(info.dir)
    assert said()[-1] == (
        "W&B: the upload did not end in 2 s; to upload later: "
        f"wandb sync --include-online {fragment.relative_to(tmp_path)}"
    )
    server.fault = None
    sync(said()[-1])
    assert server.runs["run00001"].column("_step") == list(range(1, 6))


@pytest.mark.parametrize("fault", [403, b"{}", b"null", b"<html>nonsense"])
def test_a_server_that_turns_mad_in_the_middle_is_told_of_and_training_goes_on(
    tmp_path: Path, server: WandbServer, said: Said, hurried: None, fault: int | bytes
) -> None:
    logger, info = Wandb(), run_info(tmp_path / "run")
    logger.start(info)
    _wait_for(lambda: bool(said()))
    server.fault = fault
    for step in range(1, 6):
        train_step(logger, info.dir, step)
    logger.finish("finished", {})
    assert "to upload later: wandb sync --include-online" in said()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_of_wandb_that_dies_or_hangs_ends_with_the_run(
    tmp_path: Path, fault: signal.Signals
) -> None:
    """wandb itself would wait for it at exit, for ever."""
    program = (
        "import os, sys, time, subprocess; sys.path.insert(0, sys.argv[1])\n"
        "from toy_run import *\n"
        "import llmexp.logger.wandb as module\n"
        "module.FINISH_SECONDS = module.INIT_SECONDS = 2\n"
        "logger, info = module.Wandb(), run_info(Path('run'))\n"
        "logger.start(info)\n"
        "while not list(Path('run').glob('wandb/*/*.wandb')): time.sleep(0.1)\n"
        "core = subprocess.check_output(['pgrep', '-P', str(os.getpid()), 'wandb-core'])\n"
        f"os.kill(int(core), {int(fault)})\n"
        "[train_step(logger, info.dir, step) for step in range(1, 6)]\n"
        "logger.finish('finished', {})\n"
    )
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert time.perf_counter() - begun < 30
    assert "Traceback" not in done.stderr
    assert "W&B" in done.stderr


def test_no_secret_reaches_a_file_or_the_server(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"HF_TOKEN": f"hf_{CANARY}", "DB_PASSWORD": f"{CANARY}-db"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        sys,
        "argv",
        ["train", f"hub.token={CANARY}-argv", f"data.path=https://me:{CANARY}-url@host/x", "lr=1"],
    )
    before = list(sys.argv)
    config = {
        "hub": {"token": f"{CANARY}-config"},
        "data": {"path": f"https://me:{CANARY}-url@host/x", "note": f"uses {CANARY}-db"},
        "model": {"pad_token_id": 50256},
        "samples": {"max_new_tokens": 40},
    }
    info = run_info(
        tmp_path / "run", config=config, name=f"token-hf_{CANARY}", group=f"{CANARY}-db"
    )
    train(Wandb(), info, range(1, 6))
    assert sys.argv == before
    run = server.runs["run00001"]
    assert run.config["hub"]["value"] == {"token": "***"}
    assert run.config["model"]["value"] == {"pad_token_id": 50256}
    assert run.config["samples"]["value"] == {"max_new_tokens": 40}
    assert b'"lr=1"' in run.files["wandb-metadata.json"]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    assert [path for path in written if CANARY.encode() in path.read_bytes()] == []
    assert [body for body in server.received if CANARY.encode() in body] == []
    key = server.environment()["WANDB_API_KEY"].encode()
    assert [path for path in written if key in path.read_bytes()] == []


def _wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert is_so()


def run_with_a_model(folder: Path) -> RunInfo:
    """Return what a logger shows of a run that has kept its best model."""
    info = run_info(folder)
    (info.dir / "best").mkdir()
    (info.dir / "best/model.safetensors").write_bytes(b"weights")
    return info


@pytest.mark.parametrize("is_asked", [False, True])
def test_the_best_model_is_uploaded_if_asked_for(
    tmp_path: Path, server: WandbServer, is_asked: bool
) -> None:
    info = run_with_a_model(tmp_path / "run")
    train(Wandb(artifacts=is_asked), info, range(1, 4))
    assert len(server.artifacts) == is_asked
    for made in server.artifacts.values():
        assert made.about["artifactTypeName"] == "model"
        assert made.is_committed
        assert made.files["model.safetensors"] == b"weights"


def test_an_upload_that_fails_is_told_of_and_the_run_ends_well(
    tmp_path: Path, server: WandbServer, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, info = Wandb(artifacts=True), run_info(tmp_path / "run")
    (info.dir / "best").mkdir()
    logger.start(info)
    _wait_for(lambda: bool(said()))
    monkeypatch.setattr(logger._wandb, "Artifact", None)
    logger.finish("finished", {})
    assert "W&B: the best model failed" in said()[-1]
    assert server.runs["run00001"].exit_code == 0


def test_a_model_that_was_kept_offline_is_synced_from_where_it_lies(
    tmp_path: Path, server: WandbServer, said: Said
) -> None:
    info = run_with_a_model(tmp_path / "run")
    train(Wandb(mode="offline", artifacts=True), info, range(1, 4))
    sync(said()[-1])
    [made] = server.artifacts.values()
    assert made.is_committed
    assert made.files["model.safetensors"] == b"weights"
