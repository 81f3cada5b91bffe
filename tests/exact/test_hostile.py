"""Secrets stay out of every file, names stay inside the output folder, files run no code."""

import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_runs import TINY, command, digest, environment, train, tree

from llmexp import request
from llmexp.errors import RequestError

CANARIES = {
    "WANDB_API_KEY": "canary0wandb0" + "a" * 27,
    "HF_TOKEN": "hf_CANARYinTheEnvironment1234567890",
    "AWS_SECRET_ACCESS_KEY": "CANARY/aws/secret/key",
    "MY_PASSWORD": "CANARY-password",
}
SHAPED = "hf_CANARYonTheCommandLine1234567890"


def run(name: str, *overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, *overrides),
        cwd=cwd,
        env=environment() | CANARIES | {"WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_no_secret_of_the_environment_reaches_a_file(here: Path) -> None:
    shutil.rmtree("outputs/watched", ignore_errors=True)
    done = run("watched", "logger=wandb", cwd=here)
    assert done.returncode == 0, done.stderr
    files = tree(Path("outputs/watched"))
    assert any(name.endswith(".wandb") for name in files)
    for canary in CANARIES.values():
        assert canary not in done.stdout + done.stderr
        assert not [name for name, data in files.items() if canary.encode() in data]


@pytest.mark.parametrize(
    "override",
    [
        f"+hub.token={SHAPED}",
        f"++logger.api_key={SHAPED}",
        f"samples.prompts=[{SHAPED}]",
        f"model.name={SHAPED}",
        "'samples.prompts=[${oc.env:HF_TOKEN}]'".strip("'"),
        "'model.name=${oc.env:MY_PASSWORD}'".strip("'"),
        f"run.name={SHAPED}",
    ],
)
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError) as told:  # before Hydra makes a folder
        request.prepare([*TINY, override])
    for canary in (SHAPED, *CANARIES.values()):
        assert canary not in str(told.value)


def test_what_is_refused_leaves_nothing_and_shows_nothing(here: Path) -> None:
    before = set(tree(here))
    wrong = (f"samples.prompts=[{SHAPED}]", "run.name=../../evil", "optimizer._target_=os.system")
    done = run("secret", "logger=wandb", *wrong, cwd=here)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "3 mistakes in this request" in done.stderr
    assert SHAPED not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert set(tree(here)) == before
    assert not (here.parents[1] / "evil").exists()


@pytest.mark.parametrize(
    "name", ["../../evil", ";touch evil", "a" * 300, "a\\nb", "\U0001f600", ".hidden", "/tmp/evil"]
)
def test_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(RequestError):
        request.prepare([*TINY, f"run.name='{name}'"])


@pytest.mark.parametrize(
    "override",
    [
        "optimizer._target_=os.system",
        "optimizer._target_=torch.load",
        "optimizer._target_=torch.optim.adamw.torch.hub.load",
        "schedule._target_=llmexp.durable.os.system",
        "++logger.extra._target_=os.system",
        "++model.trust_remote_code=true",
    ],
)
def test_a_config_runs_no_code_of_others(override: str) -> None:
    with pytest.raises(RequestError):
        request.prepare([*TINY, override])


def test_a_pickle_is_no_checkpoint(
    here: Path, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("outputs/poisoned", ignore_errors=True)
    shutil.copytree("outputs/whole", "outputs/poisoned")
    poison = here / "outputs/poisoned/checkpoints/step-00000006/model.safetensors"
    poison.write_bytes(b"cos\nsystem\n(S'touch poisoned'\ntR.")
    train("poisoned", "resume=auto")
    assert "step-00000006 is not used: model.safetensors" in capsys.readouterr().err
    assert digest(Path("outputs/poisoned")) == whole
    assert not (here / "poisoned").exists()


def test_code_beside_the_weights_is_never_run(
    here: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = here / "with_code"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree("outputs/with_code", ignore_errors=True)
    shutil.copytree(here / "outputs/whole/final", folder)
    (folder / "evil.py").write_text(f"open({str(here / 'ran')!r}, 'w')\nclass E: pass\n")
    text = (folder / "config.json").read_text()
    auto = '"auto_map": {"AutoConfig": "evil.E", "AutoModelForCausalLM": "evil.E"}, "model_type":'
    (folder / "config.json").write_text(text.replace('"model_type":', auto))
    monkeypatch.setenv("HF_HUB_TRUST_REMOTE_CODE", "1")
    train("with_code", f"model.weights={folder}", "train.max_steps=1")
    assert not (here / "ran").exists()
    assert (here / "outputs/with_code/final/model.safetensors").is_file()
