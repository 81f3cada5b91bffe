"""A request for data: what would have no effect is refused, and so is what has the wrong type."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmexp.data import Corpus, Source, load
from llmexp.errors import RequestError

Make = Callable[..., Corpus]
Load = Callable[..., Source]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A text of 50 lines."""
    (tmp_path / "data.txt").write_text("".join(f"line {number}\n" for number in range(50)))
    return str(tmp_path / "data.txt")


@pytest.mark.parametrize(
    ("option", "changes", "told"),
    [
        ("sample", {}, "data.path=.* has no effect: data=sample .*set data=text data.path="),
        ("text", {"columns": {"text": "zzz"}}, "data.columns.text=zzz has no effect: data=text"),
        ("jsonl", {"example": "file"}, "data.example=file has no effect: with data=jsonl"),
        ("text", {"unit": "block", "overlong": "error"}, "data.overlong=error has no effect"),
    ],
)
def test_a_setting_without_effect_is_refused(
    source: Load, path: str, option: str, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(RequestError, match=told):
        source(option, path=path, **changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"columns": {"text": 3}}, "data.columns.text=3 is no name of a column"),
        ({"columns": {"text": ["a"]}}, r"data.columns.text=\['a'\] is no name of a column"),
        ({"columns": {"text": ""}}, "data.columns.text= is no name of a column"),
        ({"path": 3}, "data.path=3 is neither a path nor a list"),
        ({"path": [3]}, r"data.path=\[3\] is neither a path nor a list"),
        ({"path": {"a": "b"}}, "data.path=.* is neither a path nor a list"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(
    source: Load, path: str, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(RequestError, match=told):
        source("jsonl", **{"path": path, **changes})


def test_columns_are_a_table_of_names(path: str) -> None:
    from omegaconf import OmegaConf

    page = OmegaConf.load(Path(__file__).parents[2] / "conf" / "data" / "jsonl.yaml")
    arguments = {str(name): value for name, value in page.items() if name != "_target_"}
    with pytest.raises(RequestError, match="data.columns=3 is no table of names"):
        load(**{**arguments, "path": path, "columns": 3})


def test_a_missing_file_is_told_with_the_nearest(source: Load, path: str) -> None:
    with pytest.raises(RequestError, match=rf"does not exist \(did you mean {path}\?\)"):
        source("text", path=path.replace("data.txt", "dta.txt"))
    for odd in ("~nobody_there/x.txt", "a\0b", "/root/none/x"):
        with pytest.raises(RequestError, match="does not exist: give the path of a file you have"):
            source("text", path=odd)


def test_a_table_says_what_is_wrong_with_its_header(source: Load, tmp_path: Path) -> None:
    table = tmp_path / "data.csv"
    table.write_text("text,id,text,\na,1,b,\nc,2,d,\n")
    with pytest.raises(RequestError, match=r"data\.csv:1: 'text' names more than one column"):
        source("csv", path=str(table))
    table.write_text("id,text,,\n1,a,,\n2,b,,\n")  # as spreadsheets pad them
    assert source("csv", path=str(table)).shape == "text"
    table.write_text("id,text\n\n")
    with pytest.raises(RequestError, match="holds no row with text: a table is a line of column"):
        source("csv", path=str(table))


def test_a_column_that_the_user_named_is_the_one_that_is_read(source: Load, tmp_path: Path) -> None:
    table = tmp_path / "data.csv"
    table.write_text("prompt,completion,body\na,b,c\nd,e,f\n")
    assert source("csv", path=str(table)).shape == "prompt and completion"
    chosen = source("csv", path=str(table), columns={"text": "body"})
    assert list(chosen.texts()) == ["c", "f"]
    with pytest.raises(RequestError, match=r"data\.columns\.text=zzz, .* found 'prompt', 'compl"):
        source("csv", path=str(table), columns={"text": "zzz"})


def test_nothing_may_follow_an_array(source: Load, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    for more in ("[]", "\n\n{}", "garbage"):
        path.write_text(f'[{{"text": "a"}}, {{"text": "b"}}] \n{more}')
        with pytest.raises(RequestError, match=r"data\.json: the JSON array ends before"):
            list(source("jsonl", path=str(path)).texts())


def test_a_role_that_nobody_knows_is_refused(source: Load, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    for name, said in (("from", "value"), ("role", "content")):
        turns = (
            '{{"conversations": [{{"{0}": "{2}", "{1}": "a"}}, {{"{0}": "gpt", "{1}": "b"}}]}}\n'
        )
        rows = [turns.format(name, said, role) for role in ("human", "system", "alien")]
        path.write_text("".join(rows))
        with pytest.raises(RequestError, match=r"data\.jsonl:3: .*role 'alien'.*human, gpt"):
            list(source("jsonl", path=str(path)).texts())


def test_val_size_beside_a_validation_file_is_said_to_be_unused(corpus: Make, path: str) -> None:
    lines = corpus("text", path=path, validation_path=path, val_size=0.3).report.lines()
    assert any("data.validation_path; data.val_size is not used" in line for line in lines)


def test_a_share_of_less_than_one_example_is_warned_of(corpus: Make, path: str) -> None:
    made = corpus("text", path=path, val_size=1e-9)
    assert len(made.validation) == 1
    assert any("val_size=1e-09 of 50 examples is less than one" in w for w in made.report.warnings)


def test_few_validation_examples_of_many_are_warned_of(corpus: Make, tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    path.write_text("".join(f"line {number}\n" for number in range(1500)))
    made = corpus("text", path=str(path), val_size=0.01)
    assert any("validation examples are few (under 50)" in w for w in made.report.warnings)
    assert corpus("text", path=str(path), val_size=0.1).report.warnings == []


def test_tokens_that_are_cut_off_are_not_counted(corpus: Make, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join("the rate " * (n % 30 + 1) + f"{n}\n" for n in range(60)))
    made = corpus("text", path=str(path), max_length=8, overlong="truncate")
    for side, facts in ((made.train, made.report.train), (made.validation, made.report.validation)):
        assert facts.tokens == sum(len(example.input_ids) for example in side)
        assert facts.label_tokens == facts.tokens - len(side)
    ends = [e.input_ids[-1] == 0 for side in (made.train, made.validation) for e in side]
    assert f"ends all but {ends.count(False)} examples" in "\n".join(made.report.lines())
