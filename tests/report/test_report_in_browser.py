"""Reports in a real Chromium: no complaint, nothing too wide, nothing blank, light and dark."""

import io
import re
import shutil

import numpy as np
import pytest
from helpers.small_runs import bright_quadrants, small_config
from PIL import Image

import flaxdl
from flaxdl.data import Arrays, Text
from flaxdl.models import TextRNN
from flaxdl.report.write import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

HOSTILE = "<script>document.title = 'taken over'</script>"
SIZES = (1280, 400)


def images_run(folder):
    """A run like that of digits_cnn."""
    inputs, label = bright_quadrants(80, 0)
    test_inputs, test_label = bright_quadrants(37, 1)
    arrays = {
        "train_inputs": inputs,
        "train_label": label,
        "test_inputs": test_inputs,
        "test_label": test_label,
        "classes": ["top left", "top right", HOSTILE, "bottom right"],
    }
    flaxdl.train(small_config(data=Arrays.from_memory(**arrays), epochs=2.0), folder)


def texts_run(folder):
    """A run like that of languages_textrnn: as many classes, long and hostile texts."""
    random = np.random.default_rng(0)
    label = random.integers(0, 25, 200).astype(np.int32)
    texts = [f"{HOSTILE} {'long' * 30}{number}" for number in label]
    arrays = {
        f"{split}_{name}": array[part]
        for split, part in (("train", slice(150)), ("test", slice(150, None)))
        for name, array in (("inputs", np.array(texts)), ("label", label))
    }
    config = small_config(
        model=TextRNN(
            vocab_size=64, embedding_size=4, hidden_size=8, num_classes=25, pooling="final_states"
        ),
        data=Arrays.from_memory(**arrays, classes=[f"language {i} {HOSTILE}" for i in range(25)]),
        transform=Text(max_length=200),
        epochs=1.0,
    )
    flaxdl.train(config, folder)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The report of each, and of both side by side."""
    folder = tmp_path_factory.mktemp("reports")
    images_run(folder / "images")
    texts_run(folder / "texts")
    both = write_report([folder / "images", folder / "texts"], folder / "both.html")
    return [folder / "images" / "report.html", folder / "texts" / "report.html", both]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser, report, width, scheme="light"):
    """A page with the report in it, and a list to which its complaints are added."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))
    page.goto(report.as_uri())
    complaints.remove(report.as_uri())  # the one request that there may be
    return page, [text for text in complaints if not text.startswith("data:")]


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_reports_fit_and_work(browser, reports, width, scheme):
    for report in reports:
        page, complaints = opened(browser, report, width, scheme)
        assert complaints == []
        assert "taken over" not in page.title().replace(HOSTILE, "")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, report
        assert page.evaluate("document.images.length") > 0 or "texts" in str(report)
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        behind = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (behind == "rgb(255, 255, 255)") == (scheme == "light")
        assert page.evaluate("document.getElementById('tip').hidden")
        for chart in page.query_selector_all("svg.chart"):
            pixels = np.asarray(Image.open(io.BytesIO(chart.screenshot())).convert("L"), float)
            assert pixels.std() > 5
            box = chart.bounding_box()
            assert box["width"] > 240
            assert box["x"] + box["width"] <= width
        page.close()


def test_the_names_of_classes_and_texts_are_shown_as_they_are(browser, reports):
    images, texts, both = reports
    page, _ = opened(browser, images, 1280)
    assert page.evaluate("document.scripts.length") == 1  # that of the page
    assert HOSTILE in page.inner_text(".confusion thead")
    page.close()
    page, _ = opened(browser, texts, 1280)
    assert HOSTILE in page.inner_text(".mistakes pre")
    assert page.locator(".confusion tbody tr").count() == 25
    page.close()
    page, _ = opened(browser, both, 1280)
    assert page.locator("article").count() == 2
    page.close()


def test_letters_in_charts_overlap_neither_each_other_nor_the_edge(browser, reports):
    page, _ = opened(browser, reports[0], 1280)
    overlapping = page.evaluate(
        """() => {
            const found = [];
            for (const chart of document.querySelectorAll("svg.chart")) {
                const frame = chart.getBoundingClientRect();
                const boxes = [...chart.querySelectorAll("text")].map(
                    text => [text.textContent, text.getBoundingClientRect()]);
                for (const [a, p] of boxes)
                    if (p.left < frame.left || p.right > frame.right || p.top < frame.top
                        || p.bottom > frame.bottom) found.push([a, "the edge"]);
                boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
                    if (p.left < q.right && q.left < p.right && p.top < q.bottom - 2
                        && q.top < p.bottom - 2) found.push([a, b]);
                }));
            }
            return found;
        }"""
    )
    assert overlapping == []
    page.close()


def test_charts_fill_their_rows_and_speed_is_the_smallest(browser, reports):
    page, _ = opened(browser, reports[0], 1280)
    right = page.locator("dl.settings").first.bounding_box()
    edge = right["x"] + right["width"]
    areas = {}
    rows = page.query_selector_all(".row")
    assert len(rows) == 2
    for row in rows:
        boxes = [figure.bounding_box() for figure in row.query_selector_all("figure")]
        assert len({round(box["y"]) for box in boxes}) == 1  # nothing has wrapped
        assert boxes[-1]["x"] + boxes[-1]["width"] == pytest.approx(edge, abs=2)
        for figure, box in zip(row.query_selector_all(".title"), boxes, strict=True):
            areas[figure.inner_text()] = box["width"] * box["height"]
    assert len(areas) == 5
    assert min(areas, key=areas.get) == "Examples per second"
    page.close()


def test_values_appear_under_the_pointer(browser, reports):
    page, complaints = opened(browser, reports[0], 1280)
    box = page.locator("svg.chart").first.bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"])
    tip = page.inner_text("#tip")
    assert re.search(r"^step \d+, epoch [\d.]+\n", tip)
    assert re.search(r"training: \d\.\d+", tip)
    assert re.search(r"validation: \d\.\d+", tip)
    page.mouse.move(box["x"] + 1, box["y"] + 0.5 * box["height"])  # left of the axes
    assert page.evaluate("document.getElementById('tip').hidden")
    assert complaints == []
    page.close()
    page, _ = opened(browser, reports[2], 1280)
    page.locator("section svg.chart").first.hover()
    assert page.inner_text("#tip").startswith("epoch ")
    page.close()


def test_the_table_of_classes_can_be_sorted(browser, reports):
    page, complaints = opened(browser, reports[1], 1280)
    table = page.locator("table.sortable").first
    for direction in ("ascending", "descending"):
        table.locator("th button", has_text="F1").click()
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == direction
        values = table.locator("tbody td:last-child").evaluate_all(
            "cells => cells.map(cell => cell.dataset.value)"
        )
        known = [float(value) for value in values if value]
        assert known == sorted(known, reverse=direction == "descending")
        assert all(not value for value in values[len(known) :])  # undefined ones last
    table.locator("th button", has_text="class").click()
    names = table.locator("tbody th").all_inner_texts()
    numbers = [int(name.split()[1]) for name in names]
    assert numbers == sorted(numbers)  # language 2 before language 10
    assert complaints == []
    page.close()


def test_everything_works_with_the_keyboard(browser, reports):
    page, complaints = opened(browser, reports[0], 1280)
    image = page.locator("img.zoom").first
    for key in ("Enter", "Space"):
        image.focus()
        before = page.evaluate("scrollY")
        page.keyboard.press(key)
        assert page.locator("dialog img").is_visible()
        assert page.evaluate("scrollY") == before
        page.keyboard.press("Escape")
        assert not page.locator("dialog").is_visible()
    button = page.locator("table.sortable th button", has_text="F1").first
    button.focus()
    outline = "button => getComputedStyle(button).outlineStyle"
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")  # so that the focus is one of the keyboard
    assert button.evaluate(outline) == "solid"
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort]").first.get_attribute("aria-sort") == "ascending"
    assert complaints == []
    page.close()


def test_tables_can_be_read_on_a_phone(browser, reports):
    page, _ = opened(browser, reports[0], 400)
    right = page.locator("table.metrics tbody td:last-child").first.bounding_box()
    assert right["x"] + right["width"] <= 400  # F1 needs no scrolling
    page.close()
    page, _ = opened(browser, reports[2], 400)
    for row in page.query_selector_all(".compared tbody tr"):
        boxes = [cell.bounding_box() for cell in row.query_selector_all("th, td")]
        assert min(box["width"] for box in boxes) > 60
        assert max(box["height"] for box in boxes) < 140  # not one letter a line
    page.close()


def test_images_are_enlarged_by_a_click(browser, reports):
    page, complaints = opened(browser, reports[0], 1280)
    image = page.locator("img.zoom").first
    small = image.bounding_box()["width"]
    image.click()
    assert page.locator("dialog img").bounding_box()["width"] > 3 * small
    assert "predicted" in page.inner_text("dialog figcaption")
    page.locator("dialog").click()
    assert not page.locator("dialog").is_visible()
    assert complaints == []
    page.close()


def test_it_prints_on_white_paper_within_its_margins(browser, reports, tmp_path):
    for report in reports[:2]:
        page, _ = opened(browser, report, 1280, "dark")
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
        page.set_viewport_size({"width": 690, "height": 1000})  # A4 within its margins
        assert page.evaluate("document.documentElement.scrollWidth") <= 690, report
        page.emulate_media(media=None)
        assert page.pdf(format="A4").startswith(b"%PDF")
        page.close()
