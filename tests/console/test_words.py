"""Numbers and texts the way a person reads them."""

import math

import pytest

from llmexp.console.words import duration, number, perplexity, printable, span


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.0, "2.000"),
        (2.10449, "2.104"),
        (10.8234, "10.82"),
        (0.01234, "0.01234"),
        (5e-5, "5e-05"),
        (4.6667e-5, "4.67e-05"),
        (999.96, "1,000"),
        (12345.6, "12,346"),
        (2e9, "2.0e+09"),
        (0.0, "0"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-3.14159, "-3.142"),
    ],
)
def test_a_number_has_three_or_four_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (75, "1 min 15 s"),
        (3661, "1 h 1 min"),
        (86400, "24 h 0 min"),
        (200000, "2 d 7 h"),
    ],
)
def test_a_duration_is_said_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ((40, 50, 60), "40-60 s"),
        ((0.2, 0.3, 0.4), "about 0 s"),
        ((145, 145, 145), "about 2 min 25 s"),
        ((80, 100, 119.4), "80-119 s"),
        ((90, 100, 121), "about 1 min 40 s"),
        ((60, 100, 200), "1-3 min"),
        ((5000, 6000, 8000), "1-2 h"),
        ((80000, 90000, 180000), "1-2 d"),
    ],
)
def test_a_range_is_said_in_one_unit(seconds: tuple[float, float, float], text: str) -> None:
    assert span(*seconds) == text


def test_perplexity_is_exp_of_the_loss_and_never_an_error() -> None:
    assert perplexity(2.0) == pytest.approx(7.389, abs=1e-3)
    assert perplexity(1000.0) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_text_cannot_drive_a_terminal() -> None:
    assert printable("a\x1b[31mb\rc\x9bd\te\n", "utf-8") == "a\\x1b[31mb\\rc\\x9bd\te\n"
    assert printable("é→x", "ascii") == "\\xe9\\u2192x"
    assert printable("\ud800", None) == "\\ud800"
