"""Reports in a real Chromium: no complaint, nothing too wide, nothing blank, light and dark."""

import io
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
        for chart in page.query_selector_all("svg.chart"):
            pixels = np.asarray(Image.open(io.BytesIO(chart.screenshot())).convert("L"), float)
            assert pixels.std() > 5
            box = chart.bounding_box()
            assert box["width"] > 250
            assert box["x"] + box["width"] <= width
        page.close()


def test_the_names_of_classes_and_texts_are_shown_as_they_are(browser, reports):
    images, texts, both = reports
    page, _ = opened(browser, images, 1280)
    assert page.evaluate("document.scripts.length") == 0
    assert HOSTILE in page.inner_text(".confusion thead")
    page.close()
    page, _ = opened(browser, texts, 1280)
    assert HOSTILE in page.inner_text(".mistakes pre")
    assert page.locator(".confusion tbody tr").count() == 25
    page.close()
    page, _ = opened(browser, both, 1280)
    assert page.locator("article").count() == 2
    page.close()


def test_letters_in_charts_do_not_run_into_each_other(browser, reports):
    page, _ = opened(browser, reports[0], 1280)
    overlapping = page.evaluate(
        """() => {
            const found = [];
            for (const chart of document.querySelectorAll("svg.chart")) {
                const boxes = [...chart.querySelectorAll("text")].map(
                    text => [text.textContent, text.getBoundingClientRect()]);
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
