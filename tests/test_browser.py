"""A report as a browser shows it: everything drawn, on any screen, in light, in dark, on paper."""
import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
from browser import Browser, find_browser
from PIL import Image, ImageChops, ImageStat

from manifoldgd.config.commands import ReportConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.distillation.distill import distill
from manifoldgd.sharing.report import write_reports

SCREENS = {"phone": (390, 844), "desk": (1200, 900)}
pytestmark = pytest.mark.skipif(
    find_browser() is None,
    reason="no browser: none of chromium, google-chrome is installed (apt-get install chromium)",
)
# Where text stands on the page: the contrast of each (WCAG 2.2, relative luminance).
CONTRASTS = """
(() => {
  const parts = color => (color.match(/[\\d.]+/g) || []).map(Number);
  const light = color => parts(color).slice(0, 3).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = e => {
    const color = getComputedStyle(e).backgroundColor;
    return parts(color)[3] === 0 ? behind(e.parentElement) : color;
  };
  const texts = [...document.querySelectorAll("body *")].filter(e => e.checkVisibility()
    && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
  const found = {};
  for (const e of texts) {
    const color = e.tagName === "text" ? getComputedStyle(e).fill : getComputedStyle(e).color;
    const [a, b] = [light(color), light(behind(e))];
    const name = e.tagName.toLowerCase() + "." + (e.getAttribute("class") || "");
    found[name] = Math.min(found[name] || 99, (Math.max(a, b) + .05) / (Math.min(a, b) + .05));
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(find_browser(), tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Digits: a guided run with a trace, decoded prototypes, and random images."
    folder = tmp_path_factory.mktemp("runs")
    for preset in ("decoded", "random", "manifoldgd"):
        config = DistillConfig(preset=preset, out=str(folder / preset), device="cpu")
        if preset == "manifoldgd":
            config = dataclasses.replace(config, ipc=3, num_inference_steps=5, trace=True)
        distill(config, progress=False)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Photographs in folders with long names, and then gone."
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        name = f"{'a very long name of a class without end ' * 3}<{i}>" + "x" * 60
        (folder / "data" / name).mkdir(parents=True)
        for k in range(12):
            image = Image.effect_noise((300, 200), 60 + k).convert("RGB")
            image.save(folder / "data" / name / f"{k}.jpg")
    config = DistillConfig(data=str(folder / "data"), preset="random", ipc=12,
                           out=str(folder / ("a run with a long name" * 5)))
    run = distill(config, progress=False)
    (folder / "data").rename(folder / "gone")
    return run


def write(*runs, out=None):
    "Write a report, and give its address."
    config = ReportConfig(tuple(map(str, runs)), out=out and str(out), device="cpu")
    return write_reports(config, progress=False)[0].resolve().as_uri()


@pytest.fixture(scope="module")
def addresses(folder, photos):
    with pytest.warns(UserWarning, match="no folder"):
        hard = write(photos)
    several = [folder / preset for preset in ("manifoldgd", "decoded", "random")]
    return {
        "one": write(folder / "manifoldgd"),
        "several": write(*several, out=folder / "several.html"),
        "hard": hard,
    }


@pytest.fixture(params=["one", "several", "hard"])
def address(request, addresses):
    return addresses[request.param]


@pytest.mark.parametrize("screen", SCREENS)
def test_everything_is_there_and_nothing_is_asked_for(browser, address, screen):
    width, height = SCREENS[screen]
    browser.show(address, width, height)
    assert browser.complaints() == []
    assert browser.requests() == [address]
    drawn = browser.ask("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert drawn and all(drawn)
    assert browser.ask("innerWidth") == width
    assert browser.overflow() == []


def test_a_picture_is_really_drawn(browser, addresses, folder):
    "The pixels on the screen are those of the first image of the run."
    browser.show(addresses["one"], 1200, 900)
    browser.ask("document.querySelector('.cells img').scrollIntoView()")
    box = browser.ask("""(() => {
      const box = document.querySelector('.cells img').getBoundingClientRect();
      return [box.left, box.top + scrollY, box.width, box.height];
    })()""")
    shot = Image.open(io.BytesIO(browser.clip(*box))).convert("L")
    image = Image.open(folder / "manifoldgd" / "images" / "0" / "00000.png")
    wanted = image.resize(shot.size, Image.Resampling.NEAREST)
    [error] = ImageStat.Stat(ImageChops.difference(shot, wanted)).mean
    assert error < 8, "Expected the screen to show the image, up to the edges of its pixels."
    assert ImageStat.Stat(shot).stddev[0] > 40


def luminance(color):
    "The mean of red, green and blue."
    return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3


@pytest.mark.parametrize("dark", [False, True])
def test_colors_follow_the_reader(browser, address, dark):
    browser.show(address, dark=dark)
    style = "getComputedStyle(document.body)"
    page, ink = (luminance(browser.ask(f"{style}.{name}")) for name in ("backgroundColor", "color"))
    assert (page < 40 and ink > 200) if dark else (page > 230 and ink < 60)
    contrasts = browser.ask(CONTRASTS)
    assert len(contrasts) > 8
    weak = {name: value for name, value in contrasts.items() if value < 4.5}
    assert not weak, "Expected a contrast of 4.5 for every text."


def test_paper(browser, addresses, tmp_path):
    browser.show(addresses["several"], dark=True)
    folded = "document.querySelector('details table').checkVisibility()"
    assert not browser.ask(folded)
    browser.call("Emulation.setEmulatedMedia", media="print", features=[
        {"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.ask(folded), "Expected the folded table to be open on paper."
    assert not browser.ask("document.querySelector('nav').checkVisibility()")
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
    browser.paper(tmp_path / "report.pdf")
    pages = (tmp_path / "report.pdf").read_bytes()
    assert pages.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pages)) > 3


def test_the_hard_one_says_what_is_missing(browser, addresses):
    browser.show(addresses["hard"], *SCREENS["phone"])
    text = browser.ask("document.querySelector('.note').innerText")
    assert "could not be opened" in text
    assert browser.ask("document.querySelectorAll('h3')[0].innerText").endswith("x" * 60)


def test_the_driver_sees_what_is_wrong(browser, tmp_path):
    "A page with everything that a report must not have: otherwise the tests above prove nothing."
    faulty = {
        "script": "<script>console.error('no'); throw new Error('broken')</script>",
        "image": "<img src='missing.png'>",
        "wide": "<p style='width: 900px'>wide</p>",
    }
    page = tmp_path / "faulty.html"
    page.write_text("<!DOCTYPE html><meta name='viewport' content='width=device-width'>"
                    + "".join(faulty.values()))
    browser.show(page.as_uri(), *SCREENS["phone"])
    complaints = json.dumps(browser.complaints())
    assert "no" in complaints and "broken" in complaints
    assert [Path(address).name for address in browser.requests()] == ["faulty.html", "missing.png"]
    assert not browser.ask("document.images[0].naturalWidth > 0")
    assert browser.overflow()
