"""The page in a real browser: it draws, it answers, and what a run wrote stays text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser

from llmexp.compare import page, runs, table

Make = Callable[..., Path]
HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>&lt;{{DATA}}"
CURVES = "document.querySelectorAll('[id=\"train/loss\"] path.curve').length"


def show(browser: Browser) -> None:
    """Compare what lies in outputs/, and open the page."""
    told = table.comparison(runs.read(runs.find([Path("outputs")])))
    Path("compare.html").write_text(page.html(told))
    browser.open(Path("compare.html"))


def test_it_draws_each_run_and_asks_nobody(browser: Browser, make: Make) -> None:
    for name, end in (("a", 2.0), ("b", 1.5), ("c", 3.0)):
        make(name, end=end, lr=end / 1000)
    show(browser)
    assert browser.run(CURVES) == 3
    assert browser.run("document.querySelectorAll('#charts figure').length") == 6
    assert browser.run("document.querySelectorAll('[id=\"eval/loss\"] circle').length") == 9
    assert "3 runs; the best: b, 1.618 nats" in browser.run("document.body.innerText")
    assert "optimizer.lr" in browser.run("document.getElementById('settings').innerText")
    assert browser.troubles() == []


def test_it_answers(browser: Browser, make: Make) -> None:
    make("a")
    make("b", end=1.0)
    show(browser)
    path = "document.querySelector('[id=\"train/loss\"] path.curve').getAttribute('d')"
    label = "document.querySelector('[id=\"train/loss\"] svg').textContent"
    straight, steps = browser.run(path), browser.run(label)
    for click, shows in (("tokens", "40k"), ("seconds", "4 s")):
        browser.run(f"document.querySelector('#axis [value={click}]').click()")
        assert shows in browser.run(label) != steps
    browser.run("document.getElementById('logy').click()")
    assert browser.run(path) != straight
    move = "document.getElementById('smooth')"
    browser.run(f"{move}.value = 0.9; {move}.dispatchEvent(new Event('input'))")
    assert browser.run(CURVES) == 4  # the raw ones lie behind, faint
    browser.run("document.querySelector('#runs button').click()")
    assert browser.troubles() == []
    assert browser.run(CURVES) == 2
    assert browser.run("document.querySelectorAll('#samples article').length") == 1
    assert browser.troubles() == []


def test_it_tells_the_numbers_under_the_pointer(browser: Browser, make: Make) -> None:
    make("a")
    make("b", end=1.0)
    show(browser)
    box = browser.run(
        "JSON.stringify(document.querySelector('[id=\"eval/loss\"] svg').getBoundingClientRect())"
    )
    import json

    at = json.loads(box)
    spot = {"x": at["x"] + at["width"] - 15, "y": at["y"] + at["height"] / 2}
    browser("Input.dispatchMouseEvent", type="mouseMoved", **spot)
    tip = browser.run("document.querySelector('[id=\"eval/loss\"] .tip').innerText")
    assert tip.split() == ["steps:", "100", "b", "1.118", "a", "2.118"]


def test_samples_stand_side_by_side_at_a_step(browser: Browser, make: Make) -> None:
    make("a", text=" of a")
    make("b", text=" of b")
    show(browser)
    assert "One of a" in browser.run("document.getElementById('samples').innerText")
    assert "One of b" in browser.run("document.getElementById('samples').innerText")
    slide = "document.getElementById('step')"
    browser.run(f"{slide}.value = 1; {slide}.dispatchEvent(new Event('input'))")
    assert "step 50" in browser.run("document.getElementById('samples').innerText")


def test_hostile_texts_stay_texts(browser: Browser, make: Make) -> None:
    make("<b>x<", text=HOSTILE, settings={HOSTILE: {"a": HOSTILE}})
    make("y")
    show(browser)
    assert browser.run("window.pwned") is None
    assert browser.troubles() == []
    assert HOSTILE in browser.run("document.getElementById('samples').textContent")
    assert HOSTILE in browser.run("document.getElementById('settings').textContent")
    assert browser.run("document.querySelector('#runs b')") is None
    assert browser.run("document.querySelectorAll('script, img').length") == 2


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_readable_in_light_and_dark(browser: Browser, make: Make, theme: str) -> None:
    for number in range(8):
        make(str(number), lr=number / 1000)
    wanted: Any = [{"name": "prefers-color-scheme", "value": theme}]
    browser("Emulation.setEmulatedMedia", features=wanted)
    show(browser)
    card = browser.run("getComputedStyle(document.querySelector('figure')).backgroundColor")
    assert (sum(rgb(card)) > 384) == (theme == "light")
    for place, least in (("h1", 7), ("#headline", 4.5), ("figure text", 4.5), ("td", 4.5)):
        kind = "fill" if "text" in place else "color"
        found = browser.run(f"getComputedStyle(document.querySelector('{place}')).{kind}")
        assert contrast(rgb(found), rgb(card)) >= least, (place, found, card)
    strokes = browser.run(
        "[...document.querySelectorAll('[id=\"train/loss\"] path.curve')]"
        ".map((path) => getComputedStyle(path).stroke + getComputedStyle(path).strokeDasharray)"
    )
    assert len(set(strokes)) == 8
    for stroke in strokes:
        assert contrast(rgb(stroke), rgb(card)) >= 3, (stroke, card)


def rgb(text: str) -> list[int]:
    """Read rgb(1, 2, 3)."""
    return [int(part) for part in text[text.index("(") + 1 : text.index(")")].split(",")[:3]]


def contrast(one: list[int], other: list[int]) -> float:
    """Return the contrast of two colours, 1 to 21 (WCAG 2.2)."""
    light = []
    for colour in (one, other):
        parts = [c / 255 for c in colour]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        light.append(0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2])
    return (max(light) + 0.05) / (min(light) + 0.05)
