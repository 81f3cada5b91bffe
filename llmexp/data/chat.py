"""Conversations become text: by the tokenizer's chat template, or plainly where it has none."""

import json
from typing import Any, Protocol

from llmexp.errors import RequestError

Messages = list[dict[str, str]]
Spans = tuple[tuple[int, int], ...]  # [start, end) in characters: what the assistant says


class Chat(Protocol):
    """How messages become text; `spans` is empty where they are not asked for."""

    def __call__(self, messages: Messages, *, is_marked: bool) -> tuple[str, Spans]: ...


ROLES = (
    *("user", "assistant", "system", "developer"),
    *("tool", "function", "ipython", "observation"),  # what a program says
)
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}


def messages_of(value: object, where: str) -> Messages:
    """Read role and content of each message (ShareGPT: from and value). Raises RequestError."""
    if isinstance(value, str) and value.startswith("["):  # a cell of a table
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RequestError(f"{where}: this conversation is not JSON ({error})") from None
    if not isinstance(value, list) or not value:
        raise RequestError(f"{where}: a conversation is a list of messages, found {value!r:.60}")
    return [_message(entry, where) for entry in value]


def _message(entry: object, where: str) -> dict[str, str]:
    if isinstance(entry, dict):
        role = entry["role"] if "role" in entry else entry.get("from")
        content = entry["content"] if "content" in entry else entry.get("value")
        if isinstance(content, list) and all(map(_is_text, content)):
            content = "".join(part["text"] for part in content)
        if isinstance(role, str) and isinstance(content, str):
            return {"role": _known(SHAREGPT_ROLES.get(role, role), where), "content": content}
    raise RequestError(
        f"{where}: a message needs a role and a content (or from and value), both text, "
        f"found {entry!r:.80}"
    )


def _is_text(part: object) -> bool:
    """Tell text from the other parts that a content may have, as images."""
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def _known(role: str, where: str) -> str:
    if role in ROLES:
        return role
    raise RequestError(
        f"{where}: nobody knows the role {role!r}, so it is not clear who speaks: rename it to one "
        f"of {', '.join((*ROLES, *SHAREGPT_ROLES))}"
    )


def plain(end_of_text: str) -> Chat:
    """Write `User: ...` and `Assistant: ...`, and end-of-text after each answer."""

    def chat(messages: Messages, *, is_marked: bool) -> tuple[str, Spans]:
        text, spans = "", []
        for message in messages:
            text += f"{message['role'].capitalize()}:"
            start = len(text)
            text += f" {message['content']}"
            if message["role"] == "assistant":
                text += end_of_text
                spans.append((start, len(text)))
            else:
                text += "\n"
        return text, tuple(spans) if is_marked else ()

    return chat


def templated(tokenizer: Any) -> Chat:
    """Use the tokenizer's own chat template; a span is what the model writes at its turn."""

    def render(messages: Messages, *, prompt: bool) -> str:
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # a template is a program, and refuses as it likes
            raise RequestError(f"the chat template refuses this conversation ({error})") from error
        return str(text)

    def chat(messages: Messages, *, is_marked: bool) -> tuple[str, Spans]:
        text, spans = render(messages, prompt=False), []
        for turn, message in enumerate(messages):
            if is_marked and message["role"] == "assistant":
                start = _start(text, render(messages[:turn], prompt=True) if turn else "")
                closed = render(messages[: turn + 1], prompt=False)
                spans.append((start, _end(text, start, message["content"], closed)))
        without_tail = text.rstrip()  # nothing follows an end-of-text that the template wrote
        return without_tail if without_tail.endswith(tokenizer.eos_token) else text, tuple(spans)

    return chat


def _start(text: str, before: str) -> int:
    if text.startswith(before):
        return len(before)
    raise RequestError(
        "this tokenizer's chat template rewrites earlier turns, so the assistant's words cannot be "
        "told apart: set data.loss_on=all"
    )


def _end(text: str, start: int, content: str, closed: str) -> int:
    """Return where the turn ends: its content, and what the template closes it with."""
    content = content.strip()
    found = text.find(content, start)
    if found < 0 or content not in closed:
        raise RequestError(
            "this tokenizer's chat template changes the assistant's words, so they cannot be told "
            "apart: set data.loss_on=all"
        )
    end = found + len(content)
    closing = closed[closed.rfind(content) + len(content) :].rstrip()
    return end + len(closing) if text.startswith(closing, end) else end
