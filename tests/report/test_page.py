"""The page: nothing that it is given can act in it, and everything in it can be read."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from flaxdl.report import page
from flaxdl.report.charts import Series, calibration_chart, line_chart
from flaxdl.report.scores import class_scores, confusion_matrix, most_confused

HOSTILE = """<script>alert('x')</script>"><img src=x onerror=alert(1)>"""
TEMPLATE = Path(page.__file__).with_name("report.html.jinja").read_text()


def hostile_example():
    return page.Example(
        name=HOSTILE,
        label=HOSTILE,
        predicted="b" + HOSTILE,
        confidence=0.9,
        label_probability=0.1,
        text=HOSTILE,
    )


def hostile_comparison():
    return page.Comparison(
        rows=[page.Row(HOSTILE, [HOSTILE] * 2, [True, False])],
        charts=[[line_chart(HOSTILE, [Series(HOSTILE, [1, 2], [1, 2])])]],
        notes=[HOSTILE],
        classes=[page.ClassDifference(HOSTILE, 3, [0.5, None], -0.5)],
        names=[HOSTILE, "b" + HOSTILE],
        outcomes=[((True, False), 3)],
        other_outcomes=1,
        disagreements=[
            page.Disagreement(HOSTILE, HOSTILE, [(HOSTILE, 0.5, True)] * 2, text=HOSTILE)
        ],
        disagreeing=1,
    )


def hostile_run():
    """A run in which every text is hostile."""
    label, predicted = np.array([0, 1, 1]), np.array([0, 1, 0])
    names = (HOSTILE, "b" + HOSTILE)
    confusion = confusion_matrix(label, predicted, 2)
    calibration = calibration_chart(np.array([0.9]), np.array([0.6]), np.array([3]), 0.3)
    return page.RunPage(
        name=HOSTILE,
        model=HOSTILE,
        parameters=12,
        results={HOSTILE: HOSTILE},
        charts=[[line_chart(HOSTILE, [Series(HOSTILE, [1, 2], [3, 4]), Series("$x", [1], [1])])]],
        settings={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        updated=HOSTILE,
        command=HOSTILE,
        selection=HOSTILE,
        unfinished=HOSTILE,
        seconds={"training": 3.0, HOSTILE: 1.0},
        devices=HOSTILE,
        classes=page.Classes(
            split=HOSTILE,
            evaluated=3,
            available=9,
            names=names,
            confusion=confusion,
            confused=most_confused(confusion, names),
            scores=class_scores(label, predicted, names),
            lowest=class_scores(label, predicted, names)[:1],
            unrecognized=1,
            calibration=calibration,
            calibration_error=0.3,
            calibration_note=HOSTILE,
            mistakes=[hostile_example()],
            wrong=1,
            uncertain=[hostile_example()],
        ),
        labels=page.LabelSets(
            split=HOSTILE,
            evaluated=3,
            available=9,
            rows=[page.LabelRow(class_scores(label, predicted, names)[0], 0.5, None)],
            unknown=2,
            wrong=1,
            mistakes=[
                page.LabelMistake(
                    name=HOSTILE,
                    missed=[(HOSTILE, 0.1)],
                    wrong=[(HOSTILE, 0.9)],
                    correct=[(HOSTILE, 0.8)],
                    text=HOSTILE,
                )
            ],
        ),
        samples=[page.Sample(HOSTILE, HOSTILE, HOSTILE)],
        samples_note=HOSTILE,
        frozen=page.Frozen(HOSTILE, (HOSTILE,), (HOSTILE,), 1.5, (HOSTILE,), 4),
        missing=HOSTILE,
    )


class Tags(HTMLParser):
    """The tags of a page, and those that are open."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.open, self.headings = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("count", [1, 2])
def test_hostile_texts_stay_texts(count):
    text = page.render([hostile_run()] * count, hostile_comparison() if count > 1 else None)
    tags = Tags(text)
    assert tags.open == []  # the page is well-formed
    assert {tag for tag, _ in tags.seen} & {"iframe", "object", "link", "base"} == set()
    assert [attributes for tag, attributes in tags.seen if tag == "script"] == [{}]
    for tag, attributes in tags.seen:
        assert not any(name.startswith("on") for name in attributes), tag
        assert attributes.get("src", "data:image/png").startswith("data:image/png")
        assert attributes.get("href", "#").startswith("#")
    # Every heading is at most one level below the one before it.
    levels = tags.headings
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))


def test_nothing_is_loaded_and_nothing_may_be():
    text = page.render([hostile_run()])
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in text
    assert f"script-src 'sha256-{digest}'" in text  # which allows no other script
    assert 'lang="en"' in text
    assert not re.search(r"url\((?!#)|@import", text)


def contrast(one, other):
    """The ratio of luminances of WCAG 2 between two colors, each three numbers up to 255."""
    luminances = []
    for color in (one, other):
        parts = [c / 255 for c in color]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        luminances.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    low, high = sorted(luminances)
    return (high + 0.05) / (low + 0.05)


def schemes():
    """The colors of the light and of the dark page, by name."""
    for block in re.findall(r":root \{([^}]*--page[^}]*)\}", TEMPLATE):
        colors = {}
        for name, value in re.findall(r"--([\w-]+): ([^;]+);", block):
            if value.startswith("#"):
                colors[name] = [int(value[i : i + 2], 16) for i in (1, 3, 5)]
            else:
                colors[name] = [int(number) for number in value.split()]
        yield colors


def test_all_colors_contrast_with_their_background():
    found = list(schemes())
    assert len(found) == 2
    for colors in found:
        for background in ("page", "card"):
            for name in ("ink", "soft"):  # letters
                assert contrast(colors[name], colors[background]) >= 4.5, (name, background)
            for number in range(1, 7):  # lines and links
                assert contrast(colors[f"series-{number}"], colors[background]) >= 4.5, number
        for kind, share in (("good", 0.45), ("bad", 0.5)):  # the darkest cells
            mixed = [
                share * a + (1 - share) * b
                for a, b in zip(colors[kind], colors["page"], strict=True)
            ]
            assert contrast(colors["ink"], mixed) >= 4.5, kind


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations(seconds, text):
    assert page.duration(seconds) == text


def test_photos_are_stored_as_jpeg_and_small_images_without_loss():
    noise = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
    assert page.data_uri(noise).startswith("data:image/jpeg;base64,")
    assert page.data_uri(noise[:32, :32]).startswith("data:image/png;base64,")
    assert page.data_uri(noise[..., 0]).startswith("data:image/png;base64,")


def test_probabilities_near_zero_or_one_are_not_certain():
    shown = [page._probability(value) for value in (0.0, 0.0004, 0.0006, 0.5, 0.9994, 0.9996, 1.0)]
    assert shown == ["<0.1%", "<0.1%", "0.1%", "50.0%", "99.9%", ">99.9%", ">99.9%"]


def test_names_break_at_punctuation_and_backticks_are_code():
    assert page._breakable("a_b.c/d<") == "a_<wbr>b.<wbr>c/<wbr>d&lt;"
    assert page._code("run `a <b>` here") == "run <code>a &lt;b&gt;</code> here"
