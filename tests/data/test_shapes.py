"""Prompts, instructions and conversations: what the text is, and which part of it is trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmexp.data import Corpus, Example, Source
from llmexp.errors import RequestError

Make = Callable[..., Corpus]
END = "<|endoftext|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# as Qwen3 does: only the last answer keeps its thoughts
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(folder: Path, *records: object) -> str:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def parts(corpus: Make, tokenizer: Any, tmp_path: Path) -> Callable[..., list[tuple[str, bool]]]:
    """Render one record and return its parts: the text, and whether it is trained."""

    def render(record: object, using: Any = tokenizer, **changes: Any) -> list[tuple[str, bool]]:
        path = write(tmp_path, record)
        made = corpus("jsonl", path=path, validation_path=path, using=using, **changes)
        return split(made.train[0], using)

    return render


def split(example: Example, tokenizer: Any) -> list[tuple[str, bool]]:
    found: list[tuple[list[int], bool]] = []
    for token, trained in zip(example.input_ids.tolist(), example.loss_mask.tolist(), strict=True):
        if not found or found[-1][1] != trained:
            found.append(([], trained))
        found[-1][0].append(token)
    return [(tokenizer.decode(ids), trained) for ids, trained in found]


def test_the_loss_is_on_the_completion_and_its_end(parts: Any) -> None:
    record = {"prompt": "What is 2+2?\n", "completion": "4 \u00e9"}
    assert parts(record) == [("What is 2+2?\n", False), (f"4 \u00e9{END}", True)]
    assert parts(record, loss_on="all") == [(f"What is 2+2?\n4 \u00e9{END}", True)]


def test_a_blank_parts_prompt_and_completion(parts: Any) -> None:
    assert parts({"prompt": "a", "completion": "b"}) == [("a\n", False), (f"b{END}", True)]
    assert parts({"prompt": "a", "completion": " b"}) == [("a", False), (f" b{END}", True)]


def test_alpaca_columns_are_read(parts: Any) -> None:
    record = {"instruction": "Add.", "input": "2+2", "output": "4", "text": "all of it"}
    prompt = "### Instruction:\nAdd.\n\n### Input:\n2+2\n\n### Response:\n"
    assert parts(record) == [(prompt, False), (f"4{END}", True)]
    with pytest.raises(RequestError, match="column 'input' holds dict, not text"):
        parts({**record, "input": {"a": 1}})
    record["input"] = ""
    prompt = "### Instruction:\nAdd.\n\n### Response:\n"
    assert parts(record) == [(prompt, False), (f"4{END}", True)]
    assert parts(record, columns={"instruction": None}) == [(f"all of it{END}", True)]


def test_columns_are_named_in_the_config(parts: Any) -> None:
    record = {"question": "a", "answer": "b", "body": "c"}
    columns = {"prompt": "question", "completion": "answer"}
    assert parts(record, columns=columns) == [("a\n", False), (f"b{END}", True)]
    assert parts(record, columns={"text": "body"}) == [(f"c{END}", True)]


ROLES = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho"},
    {"role": "user", "content": "so"},
    {"role": "assistant", "content": "la"},
]
FROM = [
    {"from": {"user": "human", "assistant": "gpt"}[turn["role"]], "value": turn["content"]}
    for turn in ROLES
]


@pytest.mark.parametrize("record", [{"messages": ROLES}, {"conversations": FROM}])
def test_conversations_have_a_plain_default(parts: Any, record: dict[str, object]) -> None:
    assert parts(record) == [
        ("User: hi\nAssistant:", False),
        (f" ho{END}", True),
        ("User: so\nAssistant:", False),
        (f" la{END}", True),
    ]


def with_template(tokenizer: Any, template: str, end: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token=end,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=template,
    )


def test_the_tokenizer_s_own_template_is_used(parts: Any, tokenizer: Any) -> None:
    using = with_template(tokenizer, CHATML, "<|im_end|>")
    opening = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert parts({"messages": ROLES}, using=using) == [
        (opening.format("hi"), False),
        ("ho<|im_end|>", True),
        ("\n" + opening.format("so"), False),
        ("la<|im_end|>", True),
    ]


def test_end_of_text_follows_where_the_template_writes_another_end(
    parts: Any, tokenizer: Any
) -> None:
    using = with_template(tokenizer, CHATML, END)
    assert parts({"messages": ROLES}, using=using)[-3:] == [
        ("la<|im_end|>", True),
        ("\n", False),
        (END, True),
    ]


def test_a_template_that_rewrites_earlier_turns_is_followed(parts: Any, tokenizer: Any) -> None:
    using = with_template(tokenizer, THINKING, "<|im_end|>")
    trained = [text for text, is_trained in parts({"messages": ROLES}, using=using) if is_trained]
    assert trained == ["ho<|im_end|>", "<think>\n\n</think>\n\nla<|im_end|>"]


def test_a_template_s_refusal_names_the_record(parts: Any, tokenizer: Any) -> None:
    using = with_template(tokenizer, "{{ raise_exception('no system role') }}", "<|im_end|>")
    with pytest.raises(RequestError, match=r"data\.jsonl:1: the chat template refuses.*no system"):
        parts({"messages": ROLES}, using=using)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a", "completion": ""},
        {"prompt": "a", "completion": None},
        {"messages": ROLES[:1]},
    ],
)
def test_a_record_with_nothing_to_train_is_refused(parts: Any, record: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=r"data\.jsonl:1: nothing to train on"):
        parts(record)
    assert len(parts(record, loss_on="all")) == 1


@pytest.mark.parametrize(
    "value",
    [
        "not a list",
        [],
        [{"role": "user"}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
        ["hi"],
    ],
)
def test_a_malformed_conversation_is_refused(parts: Any, value: object) -> None:
    with pytest.raises(RequestError, match=r"data\.jsonl:1: a (conversation|message)"):
        parts({"messages": value})


def test_unknown_columns_are_named(parts: Any) -> None:
    with pytest.raises(RequestError, match="found the columns 'a', 'b'.*data.columns.text=NAME"):
        parts({"a": "x", "b": "y"})


def test_a_conversation_in_a_table_is_json(corpus: Make, tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "data.csv"
    cell = json.dumps(ROLES).replace('"', '""')
    path.write_text(f'messages\n"{cell}"\n')
    made = corpus("csv", path=str(path), validation_path=str(path))
    assert split(made.train[0], tokenizer)[1] == (f" ho{END}", True)


def test_texts_are_what_will_be_tokenised(source: Callable[..., Source], tmp_path: Path) -> None:
    path = write(tmp_path, {"messages": ROLES}, {"messages": ROLES[:2]})
    assert list(source("jsonl", path=path).texts()) == [
        "User: hi\nAssistant: hoUser: so\nAssistant: la",
        "User: hi\nAssistant: ho",
    ]


def test_begin_of_text_comes_once_where_the_tokenizer_wants_it(parts: Any, tokenizer: Any) -> None:
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens(["<s>"])
    start = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", start)]
    )
    using = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, bos_token="<s>")
    assert parts({"text": "one"}, using=using) == [(f"<s>one{END}", True)]
    record = {"prompt": "a\n", "completion": "b"}
    assert parts(record, using=using) == [("<s>a\n", False), (f"b{END}", True)]
