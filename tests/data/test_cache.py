"""The cache: the same bytes for the same request, built once, never believed when damaged."""

import functools
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmexp.data import Corpus, Source
from llmexp.data.store import cached
from llmexp.durable import faults
from llmexp.errors import RequestError, RunError

Make = Callable[..., Corpus]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A text of 50 lines."""
    (tmp_path / "data.txt").write_text("".join(f"line {number}\n" for number in range(50)))
    return str(tmp_path / "data.txt")


def files(cache: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in cache.rglob("*")
        if path.is_file()
    }


def test_two_builds_are_equal_to_the_byte(corpus: Make, path: str, tmp_path: Path) -> None:
    made = [corpus("text", path=path, cache_dir=tmp_path / name) for name in ("one", "other")]
    assert files(tmp_path / "one") == files(tmp_path / "other")
    assert made[0].fingerprint == made[1].fingerprint


def test_a_second_run_builds_nothing(corpus: Make, path: str, tmp_path: Path) -> None:
    corpus("text", path=path)
    made = {place: place.stat().st_mtime_ns for place in (tmp_path / "cache").rglob("*")}
    corpus("text", path=path)
    assert {place: place.stat().st_mtime_ns for place in (tmp_path / "cache").rglob("*")} == made


def test_the_fingerprint_knows_the_content_not_the_place(
    corpus: Make, path: str, tmp_path: Path, tokenizer: Any
) -> None:
    first = corpus("text", path=path).fingerprint
    stores = len(list((tmp_path / "cache").iterdir()))
    moved = tmp_path / "moved.txt"
    shutil.copyfile(path, moved)
    os.utime(moved, (0, 0))
    assert corpus("text", path=str(moved)).fingerprint == first
    assert len(list((tmp_path / "cache").iterdir())) == stores

    other = Path(path).read_text().replace("line 7", "line seven")
    moved.write_text(other)
    changed = {
        corpus("text", path=str(moved)).fingerprint,
        corpus("text", path=path, seed=1).fingerprint,
        corpus("text", path=path, val_size=0.3).fingerprint,
        corpus("text", path=path, max_length=3).fingerprint,
        corpus("text", path=path, unit="block").fingerprint,
        corpus("text", path=path, example="file", validation_path=path).fingerprint,
        corpus("text", path=path, using=_without_merges(tokenizer)).fingerprint,
    }
    assert len(changed | {first}) == 8


def test_a_tokenizer_s_truncation_and_padding_change_nothing(
    corpus: Make, path: str, tokenizer: Any
) -> None:
    from transformers import PreTrainedTokenizerFast

    first = corpus("text", path=path)
    used = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>"
    )
    used.pad_token = used.eos_token
    used(["one", "two and more"], padding=True, truncation=True, max_length=2)
    assert corpus("text", path=path, using=used).fingerprint == first.fingerprint


def _without_merges(tokenizer: Any) -> Any:
    import json

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["merges"] = []
    backend = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_cache_is_built_again(
    corpus: Make, path: str, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = corpus("text", path=path)
    before = files(tmp_path / "cache")
    for store in sorted(
        place for place in before if place.endswith(("tokens.bin", "train.ranges"))
    ):
        victim = tmp_path / "cache" / store
        content = bytearray(before[store])
        if damage == "flip":
            content[len(content) // 2] ^= 1
            victim.write_bytes(content)
        elif damage == "truncate":
            victim.write_bytes(content[:-1])
        elif damage == "remove":
            victim.unlink()
        else:
            (victim.parent / "manifest.json").write_text('{"files": ')
        assert corpus("text", path=path).fingerprint == whole.fingerprint
        assert files(tmp_path / "cache") == before
        assert "damaged: building it again" in caplog.text
        caplog.clear()


def test_a_kill_at_any_operation_leaves_no_cache_that_is_believed(
    corpus: Make, path: str, tmp_path: Path
) -> None:
    expected = corpus("text", path=path)
    whole = files(tmp_path / "cache")
    number = 0
    while True:
        cache = tmp_path / f"cache-{number}"
        work = functools.partial(corpus, "text", path=path, cache_dir=cache)
        got_through = not faults.killed(number, work)
        assert corpus("text", path=path, cache_dir=cache).fingerprint == expected.fingerprint
        assert files(cache) == whole
        shutil.rmtree(cache)
        if got_through:
            break
        number += 1
    assert number > 20


def _load(
    path: str, cache: Path, source: Callable[..., Source], tokenizer: Any, queue: Any
) -> None:
    queue.put(source("text", path=path).tokenize(tokenizer, cache_dir=cache).fingerprint)


def _loaders(
    source: Callable[..., Source], tokenizer: Any, folder: Path
) -> tuple[Path, Any, list[Any]]:
    """Return a text, three processes that will tokenise it into one cache, and their queue."""
    path = folder / "data.txt"
    path.write_text("".join(f"the learning rate {number}\n" for number in range(20_000)))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    arguments = (str(path), folder / "cache", source, tokenizer, queue)
    return path, queue, [context.Process(target=_load, args=arguments) for _ in range(3)]


def test_processes_that_come_together_build_once(
    source: Callable[..., Source], tokenizer: Any, tmp_path: Path
) -> None:
    _, queue, workers = _loaders(source, tokenizer, tmp_path)
    for worker in workers:
        worker.start()
    found = {queue.get(timeout=120) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(found) == 1
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert not list((tmp_path / "cache").rglob(".tmp-*"))


def test_a_builder_that_is_killed_leaves_the_work_to_those_who_wait(
    source: Callable[..., Source], tokenizer: Any, corpus: Make, tmp_path: Path
) -> None:
    path, queue, (builder, *waiting) = _loaders(source, tokenizer, tmp_path)
    builder.start()
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cache").rglob("tokens.bin")) and time.monotonic() < deadline:
        time.sleep(0.001)
    for process in waiting:
        process.start()
    builder.kill()
    builder.join()
    assert builder.exitcode == -signal.SIGKILL  # it had not come to its end
    found = {queue.get(timeout=120) for _ in waiting}
    for process in waiting:
        process.join()
    assert found == {corpus("text", path=str(path), cache_dir=tmp_path / "alone").fingerprint}
    assert files(tmp_path / "cache") == files(tmp_path / "alone")


def test_a_builder_that_waited_takes_what_the_other_built(tmp_path: Path) -> None:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "one").write_bytes(b"1")
        return {"count": 1}

    first = cached(tmp_path, "store", build)
    second = cached(tmp_path, "store", lambda folder: pytest.fail("built twice"))
    assert (first.digest, first.facts) == (second.digest, second.facts)


def test_a_full_disk_is_told_in_words(tmp_path: Path) -> None:
    import errno

    def build(folder: Path) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match="the disk is full.*data.cache_dir"):
        cached(tmp_path, "store", build)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_cache_that_cannot_be_written_is_refused(corpus: Make, path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RequestError, match="data cache .* cannot be used.*data.cache_dir"):
        corpus("text", path=path, cache_dir=tmp_path / "file" / "cache")


def test_an_edit_during_the_reading_is_refused_and_not_kept(
    corpus: Make, tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    path = tmp_path / "data.jsonl"
    turns = '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "%d"}]'
    path.write_text("".join(f'{{"messages": {turns % n}}}\n' for n in range(9)))

    class Meddler(PreTrainedTokenizerFast):  # type: ignore[misc]
        def apply_chat_template(self, conversation: Any, **settings: Any) -> Any:
            path.write_text(path.read_text().replace("hi", "ho"))
            return super().apply_chat_template(conversation, **settings)

    template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    using = Meddler(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|endoftext|>",
        chat_template=template,
    )
    with pytest.raises(RequestError, match=r"data\.jsonl was changed while it was read"):
        corpus("jsonl", path=str(path), using=using)
    assert not list((tmp_path / "cache").rglob("manifest.json"))
    assert corpus("jsonl", path=str(path), using=using).report.documents == 9


def test_an_edit_between_two_runs_is_seen(corpus: Make, path: str) -> None:
    first = corpus("text", path=path)
    with Path(path).open("a") as file:
        file.write("one more\n")
    second = corpus("text", path=path)
    assert first.fingerprint != second.fingerprint
    assert second.report.train.documents + second.report.validation.documents == 51
