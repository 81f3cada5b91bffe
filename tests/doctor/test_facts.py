"""What the doctor knows of the data."""

import math
from pathlib import Path

import numpy as np
import pytest

from llmexp.data.examples import RANGE, Examples
from llmexp.data.store import Mapped
from llmexp.doctor.facts import frequency_loss


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    """Two examples: 9 9 5 5 and 9 5 5 7, of which the first token is no label."""

    def mapped(name: str, values: np.ndarray) -> Mapped:
        (tmp_path / name).write_bytes(values.tobytes())
        return Mapped(tmp_path / name, values.dtype)

    ids = mapped("ids", np.array([9, 9, 5, 5, 9, 5, 5, 7], np.uint16))
    return Examples(ids, mapped("ranges", np.array([(0, 4), (4, 4)], RANGE)), None)


def test_the_frequency_loss_is_the_cross_entropy_of_counting(examples: Examples) -> None:
    counts = {9: 1 + 1, 5: 4 + 1, 7: 1 + 1}  # of 6 labels and 10 possible tokens
    wanted = [9, 5, 5, 5, 5, 7]
    expected = -sum(math.log(counts[token] / 16) for token in wanted) / len(wanted)
    assert frequency_loss(examples, examples) == pytest.approx(expected, rel=1e-12)
