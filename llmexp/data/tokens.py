"""Text becomes tokens, in batches, and goes straight to disk: the token store.

tokens.bin   uint16 or uint32: all examples one after the other, each with end-of-text
offsets.bin  int64 [documents + 1]: where each begins
hashes.bin   uint64 [documents]: what each says, for the split and for duplicates
mask.bin     bool, beside tokens.bin: which tokens are trained; only where not all are
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any
from unicodedata import normalize

import numpy as np

from llmexp.data.render import Rendered
from llmexp.data.text import PIECE, Notes, cut
from llmexp.durable import Writer
from llmexp.errors import RequestError

BATCH_TEXTS = 256
BATCH_CHARACTERS = 1 << 18


class Encoder:
    """A tokenizer without truncation or padding; begin-of-text only before an example."""

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        if not getattr(tokenizer, "is_fast", False):
            raise RequestError(
                f"{type(tokenizer).__name__} has no tokenizer.json: llmexp reads fast tokenizers "
                "only. Convert it with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        if tokenizer.eos_token_id is None:
            raise RequestError("the tokenizer has no end-of-text token: set its eos_token")
        self._tokenizer = tokenizer.backend_tokenizer
        if self._tokenizer.truncation or self._tokenizer.padding:  # which others want to keep
            self._tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        self.end: int = tokenizer.eos_token_id
        self.start = self._prefix()
        highest = max(self._tokenizer.get_vocab().values())
        self.dtype = np.dtype(np.uint16 if highest < 1 << 16 else np.uint32)
        backend = self._tokenizer.to_str()
        described = [backend, self.end, self.start, tokenizer.chat_template]
        self.identity = hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def _prefix(self) -> list[int]:
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        full: list[int] = self._tokenizer.encode("a", add_special_tokens=True).ids
        return full[: full.index(bare[0])] if bare and bare[0] in full else []

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_marked(self, batch: list[Rendered]) -> list[tuple[list[int], list[bool]]]:
        """Return the ids of each text and which of them end within its spans."""
        encodings = self._tokenizer.encode_batch(
            [rendered.text for rendered in batch], add_special_tokens=False
        )
        marked = []
        for rendered, encoding in zip(batch, encodings, strict=True):
            ends = np.fromiter((end for _, end in encoding.offsets), np.int64, len(encoding))
            mask = np.full(len(ends), rendered.spans is None)
            for start, end in rendered.spans or ():
                mask |= (ends > start) & (ends <= end)
            marked.append((encoding.ids, mask.tolist()))
        return marked


class TokenWriter:
    """Append examples to the files of a token store; they are on the disk when the block ends."""

    def __init__(self, folder: Path, encoder: Encoder, *, is_masked: bool) -> None:
        self._encoder = encoder
        self._files = ExitStack()
        self._tokens = self._files.enter_context(Writer(folder / "tokens.bin"))
        self._offsets = self._files.enter_context(Writer(folder / "offsets.bin"))
        self._hashes = self._files.enter_context(Writer(folder / "hashes.bin"))
        self._mask = self._files.enter_context(Writer(folder / "mask.bin")) if is_masked else None
        self._content = hashlib.blake2b(digest_size=8)
        self._length = 0  # tokens of the present document
        self.documents = 0
        self.tokens = 0
        self.stops = 0  # documents whose end-of-text is trained
        self.without_tokens = 0  # documents of which the tokenizer leaves nothing; left out
        self._offsets.write(np.zeros(1, np.int64).tobytes())

    def add(self, batch: list[Rendered]) -> None:
        """Write a batch of examples, or pieces of them."""
        if self._mask is None:
            encoded = self._encoder.encode([rendered.text for rendered in batch])
            masks: list[list[bool]] = [[] for _ in batch]
        else:
            marked = self._encoder.encode_marked(batch)
            encoded, masks = [ids for ids, _ in marked], [mask for _, mask in marked]
        offsets: list[int] = []
        hashes = bytearray()
        for rendered, ids, mask in zip(batch, encoded, masks, strict=True):
            if self._length == 0:
                self._begin(ids, mask)
            self._content.update(_comparable(rendered, is_start=self._length == 0))
            if rendered.ends and self._end(ids, mask, rendered.is_stop_trained):
                offsets.append(self.tokens + len(ids))
                hashes += self._content.digest()
            self._length = 0 if rendered.ends else self._length + len(ids)
            if rendered.ends:
                self._content = hashlib.blake2b(digest_size=8)
            self.tokens += len(ids)
        self._write(encoded, masks)
        self._offsets.write(np.array(offsets, np.int64).tobytes())
        self._hashes.write(bytes(hashes))

    def _begin(self, ids: list[int], mask: list[bool]) -> None:
        start = self._encoder.start
        if start and ids and ids[: len(start)] != start:
            ids[:0] = start
            mask[:0] = [False] * len(start)

    def _end(self, ids: list[int], mask: list[bool], is_stop_trained: bool) -> bool:
        if not ids or ids[-1] != self._encoder.end:
            ids.append(self._encoder.end)
            mask.append(is_stop_trained)
        if self._length + len(ids) < 2:  # an end that follows nothing
            self.without_tokens += 1
            ids.clear()
            mask.clear()
            return False
        self.documents += 1
        self.stops += self._mask is None or mask[-1]
        return True

    def _write(self, encoded: list[list[int]], masks: list[list[bool]]) -> None:
        self._tokens.write(
            np.array(list(chain.from_iterable(encoded)), self._encoder.dtype).tobytes()
        )
        if self._mask is not None:
            self._mask.write(np.array(list(chain.from_iterable(masks)), bool).tobytes())

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.__exit__(kind, error, trace)


def batches(examples: Iterable[Rendered]) -> Iterator[list[Rendered]]:
    """Group examples for the tokenizer, and cut those that are too long for it to take at once."""
    batch: list[Rendered] = []
    characters = 0
    for example in examples:
        for piece in _pieces(example):
            batch.append(piece)
            characters += len(piece.text)
            if len(batch) == BATCH_TEXTS or characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch


def _pieces(example: Rendered) -> Iterator[Rendered]:
    text, spans, ends, is_stop_trained = example
    while len(text) > 2 * PIECE:
        head, _ = cut(text[:PIECE])
        yield Rendered(head, spans, False, is_stop_trained)
        text = text[len(head) :]
        spans = spans and tuple((start - len(head), end - len(head)) for start, end in spans)
    yield Rendered(text, spans, ends, is_stop_trained)


def _comparable(rendered: Rendered, *, is_start: bool) -> bytes:
    """Return what two examples share that a reader would call the same."""
    text = rendered.text if rendered.text.isascii() else normalize("NFC", rendered.text)
    text = text.lstrip() if is_start else text
    return (text.rstrip() if rendered.ends else text).encode(errors="surrogatepass")


def write_tokens(
    folder: Path,
    examples: Iterable[Rendered],
    encoder: Encoder,
    *,
    is_masked: bool,
    notes: Notes,
    reach: Callable[[int], None],
) -> dict[str, Any]:
    """Tokenise examples into a new store and return its facts; `reach` is told the bytes behind
    us.
    """
    with TokenWriter(folder, encoder, is_masked=is_masked) as writer:
        for batch in batches(examples):
            writer.add(batch)
            reach(notes.position)
    return {
        "documents": writer.documents,
        "tokens": writer.tokens,
        "stops": writer.stops,
        "dtype": encoder.dtype.name,
        "is_masked": is_masked,
        "notes": {**notes.counts(), "without_tokens": writer.without_tokens},
    }
