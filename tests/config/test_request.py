"""Every mistake of a request is refused before anything is loaded, with its cure, all at once."""

import random
import string
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra._internal.utils import get_args_parser

from llmexp import request
from llmexp.errors import RequestError
from llmexp.rules import RULES


def refused(*overrides: str) -> str:
    with pytest.raises(RequestError) as caught:
        request.prepare(list(overrides))
    return str(caught.value)


def test_a_right_request_passes_unchanged() -> None:
    line = ["model=gpt2", "hw=12gb", "train.batch_size=8", "optimizer.lr=1e-4"]
    assert request.prepare(line) == line


@pytest.mark.parametrize("prefix", ["", "+", "++"])
@pytest.mark.parametrize("key", sorted(RULES))
def test_a_misspelt_key_is_refused_with_the_right_one(key: str, prefix: str) -> None:
    letters = random.Random(key)
    place = letters.randrange(key.rfind(".") + 2, len(key)) if len(key) > 3 else 1
    misspelt = (
        key[:place]
        + letters.choice(string.ascii_lowercase.replace(key[place], ""))
        + key[place + 1 :]
    )
    if misspelt in RULES:
        pytest.skip("a right key by chance")
    assert f"did you mean {key}?" in refused(f"{prefix}{misspelt}=1")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.batch_size=abc", "train.batch_size=abc does not hold: it must be a whole number"),
        ("train.batch_size=0", "from 1"),
        ("train.batch_size=2.5", "whole number"),
        ("train.batch_size=true", "whole number"),
        ("train.micro_batch_size=many", "or auto"),
        ("optimizer.lr=-1e-3", "optimizer.lr=-0.001 does not hold: it must be a number above 0"),
        ("optimizer.lr=nan", "above 0"),
        ("optimizer.betas=[0.9]", "two numbers"),
        ("optimizer.fused=maybe", "optimizer.fused"),
        ("data.val_size=1.5", "below 1"),
        ("model.dropout=1", "below 1"),
        ("model.architecture=abc", "of a GPT-2: whole numbers"),
        ("model.architecture.n_embd=abc", "whole numbers"),
        ("model.architecture.vocab_size=null", "n_positions, vocab_size of a GPT-2"),
        ("model.architecture.n_layer=0", "whole numbers"),
        ("model.architecture.n_embd=701", "n_embd a multiple of n_head"),
        ("model.architecture.n_positions=6", "n_positions from 8"),
        ("schedule.warmup=1.5", "whole number of steps"),
        ("seed=-1", "from 0"),
        ("run.name=../../evil", "a name of at most 80"),
        ("run.name=.hidden", "not beginning with a dot"),
        ("'run.name=a b'", "a name of at most 80"),
        ("samples.prompts=[]x", "wants quotes"),
        ("model=gtp2", "did you mean gpt2?"),
        ("hw=12", "did you mean 12gb?"),
        ("experiment=mine", "experiment=mine does not exist"),
        ("+optimizer.foo=1", "no argument of torch.optim.AdamW"),
        ("optimizer.weight_deacy=0.1", "did you mean optimizer.weight_decay?"),
        ("model=hf", "model.name has no value yet"),
        ("optimizer._target_=os.system", "outside llmexp and torch.optim"),
        ("optimizer._target_=llmexp.durable.os.system", "does not exist"),
        ("optimizer._target_=llmexp.request.os", "is not a function or class of"),
        ("optimizer._target_=torch.optim.adamw.Tensor", "is not a function or class of"),
        ("data._target_=llmexp.train.nothing", "does not exist"),
        ("schedule.warmup=-1", "from 0 to below 1"),
        ("train=5", "train is a section"),
        ("checkpoint=null", "checkpoint is a section"),
        ("~train.batch_size", "none can be deleted"),
        ("~optimizer.lr", "none can be deleted"),
        ("optimizer=foo", "does not exist. There are: adafactor, adamw, adamw8bit, sgd"),
        ("+hub.token=hf_abc", "looks like a secret or holds one"),
        ("+wandb_api_key=abc", "looks like a secret or holds one"),
    ],
)
def test_a_wrong_value_is_refused_with_the_law(override: str, says: str) -> None:
    assert says in refused(override.strip("'"))


def test_a_secret_is_not_repeated() -> None:
    assert "hf_abc" not in refused("+hub.token=hf_abc")


def test_a_secret_from_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "canary")
    message = refused("run.name=${oc.env:MY_API_KEY}")
    assert "canary" not in message
    assert "secret" in message


def test_all_mistakes_come_in_one_message() -> None:
    message = refused("train.batch_sise=3", "optimizer.lr=-1", "model=gtp2", "+x.token=1", "seed=x")
    for part in ("train.batch_size", "optimizer.lr=-1", "model=gtp2", "secret", "seed=x"):
        assert part in message


def test_a_misspelt_key_in_a_patch_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ntrain: {batch_sise: 4}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    message = refused("--config-dir", str(tmp_path), "experiment=mine")
    assert "train.batch_sise" in message
    assert "train.batch_size" in message


def test_swept_values_are_checked_one_by_one() -> None:
    assert "train.batch_size=0" in refused("-m", "train.batch_size=4,0")
    assert "optimizer.lr=-1" in refused("-m", "optimizer.lr=interval(-1,1)")
    assert "did you mean gpt2" in refused("-m", "model=gpt2-nano,gtp2")


def test_a_searched_batch_size_wants_equal_data() -> None:
    assert "train.epochs" in refused("-m", "train.batch_size=4,8", "train.max_steps=10")


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        (["seed=1", "-m", "train.epochs=1,2"], ["-m"]),
        (["-m", "seed=1", "train.epochs=1,2"], ["-m"]),
        (["seed=1", "train.epochs=1", "--cfg", "job"], ["--cfg", "job"]),
        (["seed=1", "--cfg", "job", "train.epochs=1", "--resolve"], ["--cfg", "job", "--resolve"]),
    ],
)
def test_a_flag_may_stand_anywhere(line: list[str], flags: list[str]) -> None:
    settings = [word for word in line if "=" in word]
    assert request.prepare(line) == flags + settings
    given = get_args_parser().parse_args(request.prepare([*line, "--help"]))  # as Hydra reads it
    assert given.help and given.overrides == settings


def test_info_does_not_take_a_setting_for_its_own() -> None:
    assert request.prepare(["model=gpt2", "--info"]) == ["model=gpt2", "--info"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["--train.epochs=3"], "there is no flag --train.epochs: did you mean train.epochs?"),
        (["--lr", "5e-5"], "there is no flag --lr: did you mean optimizer.lr?"),
        (["seed=1", "--mutirun", "seed=2"], "no flag --mutirun: did you mean --multirun?"),
        (["-x"], "there is no flag -x\nSettings are written without dashes, as in train.epochs=3"),
        (["--cfg", "jobs"], "invalid choice: 'jobs' (choose from"),
        (["--cfg"], "expected one argument"),
        (["--c", "job"], "--c could match --cfg"),
    ],
)
def test_what_is_no_flag_is_refused_in_words(
    line: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(*line)
    assert capfd.readouterr() == ("", "")


def test_torchrun_with_multirun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert "one sweep per process" in refused("-m", "seed=1,2")


def test_resume_takes_the_overrides_of_the_run(tmp_path: Path) -> None:
    saved = tmp_path / "run" / ".hydra" / "overrides.yaml"
    saved.parent.mkdir(parents=True)
    saved.write_text(yaml.safe_dump(["train.batch_size=4", "run.name=a", "train.epochs=1"]))
    line = request.prepare([f"resume={tmp_path / 'run'}", "train.epochs=2"])
    assert "train.batch_size=4" in line
    assert "train.epochs=2" in line
    assert "train.epochs=1" not in line
    assert line[-1] == f"hydra.run.dir='{tmp_path / 'run'}'"
    assert "no run folder" in refused(f"resume={tmp_path}")
    assert "does not exist" in refused(f"resume={tmp_path / 'nowhere'}")


def test_run_folders_stay_inside_outputs() -> None:
    assert request.run_dir("a", "d", "t", "m", "x") == "outputs/a"
    assert ".." not in Path(request.run_dir(None, "d", "t", "../../m", "x")).parts


def test_an_architecture_is_whole_or_null() -> None:
    with pytest.raises(RequestError, match="n_layer, n_head, n_embd, n_positions, vocab_size"):
        request.prepare(["model=hf", "model.name=some/model", "model.architecture={n_layer:2}"])
    request.prepare(["model=hf", "model.name=some/model", "model.architecture=null"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--help"], "cannot write what was asked for: No space left on device"),
        (["hydra.run.dir=/proc/no/such"], "cannot make the run folder /proc/no: "),
    ],
)
def test_what_cannot_be_written_is_told_in_a_line(words: list[str], says: str) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "llmexp.train", "logger=none", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {says}")
