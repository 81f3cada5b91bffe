"""Strict configuration: every mistake of a request, found before anything is loaded, in one
message.

Hydra refuses an unknown key on the command line, but neither behind a `+` nor inside a patch file.
Here a table states the laws of the global keys (llmexp/rules.py), the signature of a part's
`_target_` those of its arguments.
"""

import difflib
import functools
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llmexp.errors import RequestError
from llmexp.logger.redact import redact
from llmexp.rules import FLAG, PART_RULES, RULES, TEXT, Rule, is_number

PARTS = ("model", "data", "optimizer", "schedule", "precision", "logger")
TARGETS = ("llmexp", "torch.optim")  # the packages a `_target_` may come from: a config is code
SECRET = re.compile(r"(^|[._-])(\w*token|secret|password|passwd|api_?key|credentials?)$", re.I)


def check(settings: Mapping[str, Any], *, parts: bool = True) -> None:
    """Raise RequestError with all mistakes in `settings`, each with its law, its value and its
    cure.

    `parts=False` leaves out what needs the parts' code imported.
    """
    mistakes = [*_secrets(settings), *_globals(settings)]
    if parts:
        for part in PARTS:
            mistakes += _part(part, settings.get(part))
    refuse(mistakes)


def refuse(mistakes: list[str]) -> None:
    """Raise RequestError if there are any mistakes, with all of them."""
    told = [str(redact(text)) for text in mistakes]
    if len(told) == 1:
        raise RequestError(told[0])
    if told:
        lines = "\n".join(f"  {number}. {text}" for number, text in enumerate(told, 1))
        raise RequestError(f"{len(mistakes)} mistakes in this request:\n{lines}")


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Make every call and return the results. Raises RequestError with the mistakes of all of
    them."""
    results, mistakes = [], []
    for make in calls:
        try:
            results.append(make())
        except RequestError as problem:
            mistakes.append(str(problem))
    refuse(mistakes)
    return results


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Return ': did you mean X?' for the known name most like `name`, or nothing."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1, 0.6)
    last = name.rsplit(".", 1)[-1]
    ends = {key.rsplit(".", 1)[-1]: key for key in known}
    close = close or [ends[end] for end in difflib.get_close_matches(last, list(ends), 1, 0.7)]
    return f": did you mean {close[0]}?" if close else ""


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every leaf."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _secrets(settings: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} looks like a secret or holds one, and no secret has a config field (it would be "
        "written to disk): "
        "keep it in the environment, as in HF_TOKEN or WANDB_API_KEY"
        for key, value in flat(settings)
        if SECRET.search(key) or redact(str(value)) != str(value)
    ]


def _globals(settings: Mapping[str, Any]) -> list[str]:
    """Check the keys that are no part's: unknown and missing ones, and the law of each."""
    leaves = {key: value for key, value in flat(settings) if key.split(".")[0] not in PARTS}
    sections = {key for key in leaves if any(rule.startswith(f"{key}.") for rule in RULES)}
    known = [*RULES, *PART_RULES, *PARTS]
    mistakes = [
        f"{key}={shown(leaves[key])}: {key} is a section: name a setting in it, as in "
        f"{next(rule for rule in RULES if rule.startswith(f'{key}.'))}=..."
        for key in sorted(sections)
    ]
    mistakes += [
        f"{key} is no setting of llmexp{nearest(key, known)}"
        for key in leaves
        if key not in RULES and key not in sections and not SECRET.search(key)
    ]
    mistakes += [
        f"{key} is missing: conf/train.yaml has it, and no page or override may take it away"
        for key in RULES
        if key not in leaves and key.split(".")[0] not in sections
    ]
    return mistakes + _broken(leaves, RULES)


def _broken(leaves: Mapping[str, Any], rules: Mapping[str, Rule]) -> list[str]:
    return [
        f"{key}={shown(leaves[key])} does not hold: it must be {rule.law}"
        for key, rule in rules.items()
        if key in leaves and leaves[key] != "???" and not rule.holds(leaves[key])
    ]


def shown(value: object) -> str:
    """Return a value as the command line writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _part(part: str, node: Any) -> list[str]:
    """Check one part: its target, its arguments against the target's signature, its values."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        return [
            f"{part} is no part: it must be one call, `_target_` and its arguments (conf/{part}/)"
        ]
    arguments = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
    try:
        target = resolve(str(node["_target_"]))
    except RequestError as problem:
        return [f"{part}._target_: {problem}"]
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    expected = inspect.signature(target).parameters
    mistakes = [
        f"{part}.{key} is no argument of "
        f"{node['_target_']}{nearest(f'{part}.{key}', [f'{part}.{k}' for k in expected])}"
        for key in arguments
        if key not in expected and not SECRET.search(key)
    ]
    given = {key: value for key, value in arguments.items() if key in expected}
    mistakes += [
        f"{part}.{key} has no value yet: give it one, as in {part}.{key}=..."
        for key, value in given.items()
        if value == "???"
    ]
    leaves = dict(flat(given, f"{part}."))
    tables = {rule.rpartition(".")[0] for rule in PART_RULES if rule.count(".") == 2}
    mistakes += [
        f"{key} is no setting of llmexp{nearest(key, PART_RULES)}"
        for key in leaves
        if key.rpartition(".")[0] in tables and key not in PART_RULES
    ]
    mistakes += _broken(leaves | {f"{part}.{k}": v for k, v in given.items()}, PART_RULES)
    for key, value in given.items():
        rule = None if f"{part}.{key}" in PART_RULES else _typed(hints.get(key))
        if rule is not None and value != "???" and not rule.holds(value):
            mistakes.append(f"{part}.{key}={shown(value)} does not hold: it must be {rule.law}")
    return mistakes


def resolve(target: str) -> Callable[..., Any]:
    """Return what a `_target_` names. Raises RequestError outside the allowed packages.

    The object itself is looked at, not only its name: `llmexp.x.os.system` is somebody else's.
    """
    module, _, name = target.rpartition(".")
    if not _allowed(module):
        raise RequestError(
            f"{target} is outside {' and '.join(TARGETS)}. A config is code: what it may call is "
            "listed in "
            "llmexp/config.py (TARGETS)"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise RequestError(f"{target} does not exist") from None
    if not callable(found) or not _allowed(getattr(found, "__module__", "")):
        raise RequestError(f"{target} is not a function or class of {' or '.join(TARGETS)}")
    return found  # type: ignore[no-any-return]


def call(node: Mapping[str, Any], *args: Any) -> Any:
    """Make the call that a part describes; with `_partial_: true`, return it ready to be
    completed."""
    arguments = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
    target = functools.partial(resolve(node["_target_"]), *args, **arguments)
    return target if node.get("_partial_") else target()


def _allowed(module: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in TARGETS)


SCALARS: dict[Any, Rule] = {
    int: Rule("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    float: Rule("a number", is_number),
    str: TEXT,
    bool: FLAG,
    type(None): Rule("null", lambda v: v is None),
}


def _typed(hint: Any) -> Rule | None:
    """Return the rule of a simple annotation, None where there is nothing simple to check."""
    if typing.get_origin(hint) is typing.Literal:
        words = typing.get_args(hint)
        return Rule("one of " + ", ".join(map(shown, words)), lambda v: v in words)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    rules = [
        _typed(o) if typing.get_origin(o) is typing.Literal else SCALARS.get(o) for o in options
    ]
    if not rules or any(rule is None for rule in rules):
        return None
    known = [rule for rule in rules if rule is not None]
    return Rule(
        " or ".join(rule.law for rule in known), lambda v: any(rule.holds(v) for rule in known)
    )
