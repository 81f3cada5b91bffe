"""What the machine, the data and the samples say."""

from collections import Counter
from collections.abc import Sequence

from llmexp.doctor.curves import About, Curves, finite, highest, middle
from llmexp.doctor.findings import Finding, finding
from llmexp.doctor.learning import FEW_ROWS

WAITING = 0.3  # of the time
PADDING = 0.3  # of the computed positions
FEW_EXAMPLES = 30  # of validation
WORDS = 12  # of a sample, below which it is not judged
REPEATS = 0.5  # of its groups of three words
FULL = 0.95  # of the card's memory
SLOWED = 0.5  # tokens per second, late to early


def data_bound(seen: Curves, about: About) -> Finding | None:
    """The model waits for its examples."""
    late = finite(seen.waiting[len(seen.waiting) // 2 :])
    if len(late) < FEW_ROWS // 2 or middle(late) < WAITING:
        return None
    return finding(
        "data-bound",
        f"{middle(late):.0%} of the time of a step is spent waiting for its examples",
        ("data.cache_dir=FOLDER", "the tokens lie on a slow disk: choose a folder on a fast one"),
        ("train.micro_batch_size=auto", "or passes are too small: let them fill the memory"),
    )


def padding(seen: Curves, about: About) -> Finding | None:
    """Much of what is computed is padding."""
    share = about.data.get("padding", 0.0)
    if share < PADDING:
        return None
    return finding(
        "padding",
        f"{share:.0%} of the computed positions hold no token",
        ("data.pack=true", "short examples share a row, and none sees another"),
        ("train.micro_batch_size=1", "where the model cannot pack: rows of unlike length apart"),
        (
            f"data.max_length={int(about.number('data.max_length', 512)) // 2}",
            "or cut the few long examples that the others are padded to",
        ),
    )


def small_validation(seen: Curves, about: About) -> Finding | None:
    """The validation loss rests on few examples."""
    count = about.data.get("validation_examples")
    if count is None or count >= FEW_EXAMPLES:
        return None
    total = count + about.data.get("train_examples", 0)
    share = min(0.3, max(0.2, FEW_EXAMPLES / max(total, 1)))
    return finding(
        "validation too small",
        f"the validation loss rests on {count:,} examples of {total:,}, so chance may move it",
        ("data.validation_path=FILE", "bring text of the same kind that is not trained on"),
        (f"data.val_size={share:.2g}", "or keep more of the examples for it"),
    )


def repeating(seen: Curves, about: About) -> Finding | None:
    """The generated texts go in circles."""
    shares = [share for text in seen.samples if (share := repeated(text.split())) is not None]
    circling = [share for share in shares if share >= REPEATS]
    if not circling or 2 * len(circling) < len(shares):
        return None
    hot = about.number("samples.temperature", 0.8)
    return finding(
        "repeating samples",
        f"{len(circling)} of {len(shares)} samples repeat themselves: {max(circling):.0%} of the "
        "groups of three words stand there before",
        (f"samples.temperature={max(0.8, hot + 0.2):.2g}", "it takes the likeliest token too often")
        if hot < 1
        else ("data.path=FILE", "the model knows too little text: bring more"),
        ("data.duplicates=drop", "or the data repeats itself"),
        (f"train.epochs={2 * about.number('train.epochs', 3):g}", "or it has learned too little"),
    )


def repeated(words: Sequence[str]) -> float | None:
    """Return the share of groups of three words that stand earlier in the text already."""
    if len(words) < WORDS:
        return None
    groups = Counter(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(groups) / groups.total()


def spill(seen: Curves, about: About) -> Finding | None:
    """The card is full and the steps have become slow: memory is swapped to the host."""
    card = about.number("hw.memory_gib", 0.0)
    speed, peak = finite(seen.speed), highest(seen.peak)
    if not card or len(speed) < 2 * FEW_ROWS or not peak >= FULL * card:
        return None
    quarter = len(speed) // 4
    early, late = middle(speed[1:quarter]), middle(speed[-quarter:])
    if late > SLOWED * early:
        return None
    half = int(about.number("train.micro_batch_size", 2)) // 2
    return finding(
        "memory spill",
        f"the peak of {peak:.1f} GiB fills the card's {card:g}, and {early:,.0f} tokens per second "
        f"became {late:,.0f}",
        (f"train.micro_batch_size={max(1, half)}", "smaller passes; the result is the same"),
        ("train.activation_checkpointing=true", "or recompute what would be kept"),
        ("hw.display=true", "or a desktop shares the card"),
    )
