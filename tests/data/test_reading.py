"""The reader's table: what is a line, what is text, and what is refused with file and line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmexp.data import Corpus, Source, text
from llmexp.errors import RequestError

Make = Callable[..., Corpus]
Load = Callable[..., Source]
FILLER = b"one more line\nand another\nand a third\n"


def write(folder: Path, content: bytes, name: str = "data.txt") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfone\ntwo\n", ["one", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"one\ntwo", ["one", "two"]),
        (b"one\ntwo\n", ["one", "two"]),
        (b"a\rb\nc\n", ["a\rb", "c"]),
        (b"a\r\r\nb\n", ["a\r", "b"]),
        ("a\u2028b\nc\x85d\n".encode(), ["a\u2028b", "c\x85d"]),
        (b"a\x0bb\nc\x0cd\n", ["a\x0bb", "c\x0cd"]),
        (b"a\0b\nc\n", ["a\0b", "c"]),
        (b"\n \none\n\t\n\ntwo\n\n", ["one", "two"]),
        ("\u00e9\u4e16\U0001f600\nx\n".encode(), ["x", "\u00e9\u4e16\U0001f600"]),
    ],
)
def test_a_line_ends_at_lf_or_crlf_and_nowhere_else(
    corpus: Make,
    texts: Callable[[Corpus], list[str]],
    tmp_path: Path,
    content: bytes,
    expected: list[str],
) -> None:
    made = corpus("text", path=write(tmp_path, content))
    assert texts(made) == sorted(expected)


def test_blank_lines_and_nul_are_counted(corpus: Make, tmp_path: Path) -> None:
    made = corpus("text", path=write(tmp_path, b"\n  \none\n\ntw\0o\nthree\0\0\n"))
    assert made.report.notes["blank"] == 3
    assert made.report.notes["nul"] == 2
    assert any("NUL" in line for line in made.report.lines())


def test_control_characters_can_be_dropped(
    corpus: Make, texts: Callable[[Corpus], list[str]], tmp_path: Path
) -> None:
    made = corpus("text", path=write(tmp_path, b"a\0\x1b[31mb\tc\nd\x7f\n"), drop_control=True)
    assert texts(made) == ["a[31mb\tc", "d"]


def test_invalid_utf8_is_refused_with_file_line_and_byte(corpus: Make, tmp_path: Path) -> None:
    path = write(tmp_path, b"one\ntwo\nthree \xff four\n")
    with pytest.raises(RequestError, match=r"data\.txt:3: invalid UTF-8 at byte 7"):
        corpus("text", path=path)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("replace", ["one", "thr\ufffdee", "two"]), ("skip", ["one", "two"])],
)
def test_invalid_utf8_can_be_replaced_or_skipped_and_is_counted(
    corpus: Make,
    texts: Callable[[Corpus], list[str]],
    tmp_path: Path,
    policy: str,
    expected: list[str],
) -> None:
    path = write(tmp_path, b"one\ntwo\nthr\xffee\n")
    made = corpus("text", path=path, encoding_errors=policy)
    assert texts(made) == expected
    assert made.report.notes["undecodable"] == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_wide_encodings_are_told_from_text(source: Load, tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "one\ntwo\n".encode(encoding))
    with pytest.raises(RequestError, match=rf"looks like {encoding.upper()}: convert.*iconv"):
        source("text", path=path)


@pytest.mark.parametrize("name", ["data.txt", "data.gz", "data.zst"])
def test_packed_files_are_known_by_their_bytes(
    corpus: Make, texts: Callable[[Corpus], list[str]], tmp_path: Path, name: str
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    zstandard = pyarrow.compress(FILLER, codec="zstd", asbytes=True)
    for content in (FILLER, gzip.compress(FILLER), zstandard):
        made = corpus("text", path=write(tmp_path, content, name))
        assert texts(made) == ["and a third", "and another", "one more line"]


def test_cut_off_packed_files_are_refused_with_the_lines_read(corpus: Make, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    content = b"".join(b"line %d\n" % number for number in range(20_000))
    for packed in (gzip.compress(content), pyarrow.compress(content, codec="zstd", asbytes=True)):
        path = write(tmp_path, packed[: len(packed) // 2])
        with pytest.raises(RequestError, match=r"data\.txt: damaged or cut off .* lines could be"):
            corpus("text", path=path)


@pytest.mark.parametrize("content", [b"", b"\n \n\t\r\n", b"a single line\n"])
@pytest.mark.parametrize("option", ["text", "jsonl", "csv"])
def test_too_little_is_refused_by_the_file_s_name(
    source: Load, tmp_path: Path, content: bytes, option: str
) -> None:
    if option == "jsonl" and content.startswith(b"a"):
        content = b'{"text": "one"}\n'
    if option == "csv" and content.startswith(b"a"):
        content = b"text\none\n"
    with pytest.raises(RequestError, match=r"data\.path=.*data\.txt (is empty|holds)"):
        source(option, path=write(tmp_path, content))


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ("line", ["four", "one", "three", "two"]),
        ("paragraph", ["four", "one\ntwo", "three"]),
        ("file", ["one\ntwo\n\nthree\n\n\nfour", "x"]),
    ],
)
def test_an_example_is_a_line_a_paragraph_or_a_file(
    corpus: Make,
    texts: Callable[[Corpus], list[str]],
    tmp_path: Path,
    example: str,
    expected: list[str],
) -> None:
    paths = [write(tmp_path, b"\n\none\r\ntwo\n \nthree\n\n\nfour\n\n")]
    if example == "file":
        paths.append(write(tmp_path, b"x\n", "second.txt"))
    assert texts(corpus("text", path=paths, example=example)) == expected


def test_several_files_and_patterns_are_one_source(
    corpus: Make, texts: Callable[[Corpus], list[str]], tmp_path: Path
) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        write(tmp_path, name.encode() + b"\n", name)
    made = corpus("text", path=[f"{tmp_path}/*.txt", f"{tmp_path}/c.md"])
    assert texts(made) == ["a.txt", "b.txt", "c.md"]


def test_hostile_strings_come_back_as_they_were(
    corpus: Make, texts: Callable[[Corpus], list[str]], tmp_path: Path
) -> None:
    strings = [
        "\U0001f468\u200d\U0001f469\u200d\U0001f466 \u0627\u0644\u0639 \u202etest\u202c",
        "Z\u0321\u0358a\u0358lgo \ufffe \ud7ff \U0010ffff",
        "../../etc/passwd; DROP TABLE users; $(touch /tmp/x) {{7*7}} %s %n",
        "\x1b]0;title\x07 \x08\x7f \x85 \u2029",
        "   leading and trailing   ",
        "<|im_start|>system NUL\0 -1e309 undefined",
    ]
    path = write(tmp_path, "\n".join(strings).encode())
    assert texts(corpus("text", path=path)) == sorted(strings)
    rows = "".join(json.dumps({"text": string}) + "\n" for string in strings).encode()
    assert texts(corpus("jsonl", path=write(tmp_path, rows))) == sorted(strings)


def test_a_huge_line_is_warned_of(
    corpus: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "HUGE", 100)  # ten megabytes take seconds to tokenise
    made = corpus("text", path=write(tmp_path, b"a " * 60 + b"\nshort\n"))
    assert any("1 lines are longer than 10 MB" in line for line in made.report.warnings)


def test_a_long_line_is_tokenised_in_pieces_as_it_would_be_whole(
    corpus: Make, tokenizer: Any, tmp_path: Path
) -> None:
    words = " ".join(f"the  quick {number}\u00e9" for number in range(60_000))
    path = write(tmp_path, words.encode() + b"\nshort\n")
    made = corpus("text", path=path, validation_path=path, max_length=1 << 24)
    long = max((made.train[0], made.train[1]), key=lambda example: len(example.input_ids))
    expected = tokenizer.backend_tokenizer.encode(words).ids
    assert long.input_ids[:-1].tolist() == expected


def test_a_long_line_without_blanks_keeps_its_text(
    corpus: Make, texts: Callable[[Corpus], list[str]], tmp_path: Path
) -> None:
    line = "\u4e16\u754c" * 200_000
    path = write(tmp_path, line.encode() + b"\r\nshort\n")
    made = corpus("text", path=path, max_length=1 << 24)
    assert texts(made) == sorted([line, "short"])


def json_lines(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def test_json_errors_name_file_and_line(corpus: Make, tmp_path: Path) -> None:
    good = json_lines({"text": "one"}, {"text": "two"})
    for bad, message in (
        (b'{"text": \n', "this line is not JSON"),
        (b'"text"\n', "expected a JSON object"),
        (b'{"body": "x"}\n', "no column 'text'"),
        (b'{"text": 7}\n', "column 'text' holds int"),
        (b'{"text": "a", "text": "b"}\n', "the name 'text' occurs more than once"),
        (b'{"text": "\\ud800"}\n', "half a surrogate pair"),
    ):
        with pytest.raises(RequestError, match=rf"data\.txt:3: .*{message}"):
            corpus("jsonl", path=write(tmp_path, good + bad))


def test_an_array_of_objects_is_read_like_json_lines(
    corpus: Make, texts: Callable[[Corpus], list[str]], tmp_path: Path
) -> None:
    tail = "the learning rate " * 30
    records = [{"text": f"line \n {number} ] , \\ \u00e9 {tail}"} for number in range(2_500)]
    expected = sorted(record["text"] for record in records)
    for indent in (None, 2):
        content = b"\n" + json.dumps(records, indent=indent).encode()
        assert texts(corpus("jsonl", path=write(tmp_path, content))) == expected


def test_a_damaged_array_is_refused_at_its_item(corpus: Make, tmp_path: Path) -> None:
    for content in (
        b'[{"text": "a"}, {"text" "b"}]',
        b'[{"text": "a"}, {"text": "b"',
        b'[{"text": "a"}, {"text": "b", "text": "c"}]',
    ):
        with pytest.raises(RequestError, match="item 2 of this JSON array"):
            corpus("jsonl", path=write(tmp_path, content))


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_tables_are_read_with_their_quotes(
    corpus: Make, texts: Callable[[Corpus], list[str]], tmp_path: Path, delimiter: str
) -> None:
    rows = ["id,text", '1,"a, ""b""\r\nc"', ",", "2,d", ""]
    content = "\r\n".join(rows).replace(",", delimiter).encode()
    made = corpus("csv", path=write(tmp_path, b"\xef\xbb\xbf" + content))
    assert texts(made) == [f'a{delimiter} "b"\nc', "d"]


def test_a_row_that_does_not_fit_the_header_is_refused(corpus: Make, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"data\.txt:3: 3 cells under a header of 2"):
        corpus("csv", path=write(tmp_path, b"id,text\n1,a\n2,b,c\n3,d\n"))
    with pytest.raises(RequestError, match=r"data\.txt:\d: this row cannot be read"):
        corpus("csv", path=write(tmp_path, b'id,text\n1,a\n2,"b\n3,d\n'))


def test_parquet_and_datasets_give_the_same_examples(
    corpus: Make,
    texts: Callable[[Corpus], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    lines = [f"line {number}" for number in range(700)]
    table = pyarrow.table({"id": range(700), "text": lines})
    (tmp_path / "folder").mkdir()
    parquet.write_table(table, tmp_path / "folder" / "train.parquet")
    datasets.Dataset.from_dict({"text": lines}).save_to_disk(tmp_path / "saved")
    for option, path in (
        ("parquet", "folder/*.parquet"),
        ("hf", "folder"),
        ("hf", "folder@train"),
        ("hf", "saved"),
    ):
        assert texts(corpus(option, path=f"{tmp_path}/{path}")) == sorted(lines)


def test_a_dataset_that_cannot_be_had_says_what_to_do(source: Load) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(RequestError, match="data.path=nobody/nothing cannot be loaded.*FOLDER"):
        source("hf", path="nobody/nothing")


def test_no_parquet_file_is_refused(source: Load, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(RequestError, match="cannot be read as Parquet"):
        source("parquet", path=write(tmp_path, FILLER))
