"""The pages of reports in a real browser: whole, readable, sortable, dark and printed."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from tests.workflows.reporting.cases import CASES

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FIND_PROBLEMS = """() => {
  const wide = innerWidth, problems = [];
  const boxed = e => { for (e = e.parentElement; e; e = e.parentElement)
    if (["auto", "scroll"].includes(getComputedStyle(e).overflowX)) return true; return false; };
  const name = e => e.tagName + "." + (e.getAttribute("class") || "") + ": " + e.textContent.trim().slice(0, 40);
  const rgb = c => {
    const p = c.match(/[\\d.]+/g).map(Number);
    return p.length > 3 && p[3] < 1 ? null : p.slice(0, 3);
  };
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor); if (c) return c; } return [255, 255, 255]; };
  if (document.documentElement.scrollWidth > wide) problems.push("the page is wider than the screen");
  for (const e of document.body.querySelectorAll("*")) {
    if (!e.checkVisibility() || e.closest("defs") || e.closest("script")) continue;
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (!boxed(e) && !e.closest("svg") && (box.right > wide + 1 || box.left < -1))
      problems.push("sticks out: " + name(e));
    if (["hidden", "clip"].includes(style.overflowX) && !e.closest("svg") && e.scrollWidth > e.clientWidth + 1)
      problems.push("is clipped: " + name(e));
    if (["SECTION", "svg", "FIGURE", "IMG", "TABLE"].includes(e.tagName) && !(box.width > 8 && box.height > 8))
      problems.push("has no size: " + name(e));
    if (e.tagName === "TD" && !e.classList.contains("long") && e.textContent.trim().length <= 24 && box.height > 48
        && e.parentElement.cells.length > 1 && ![...e.parentElement.cells].some(c => c.matches(".long, .wrap")))
      problems.push("is broken into lines: " + name(e));
    const hasText = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!hasText) continue;
    const svg = e.tagName === "text";
    const [a, b] = [light(rgb(svg ? style.fill : style.color)), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) problems.push("is hard to read: " + name(e));
    if (svg) {
      const chart = e.ownerSVGElement, frame = chart.getBoundingClientRect();
      const size = parseFloat(style.fontSize) * frame.width / chart.viewBox.baseVal.width;
      if (size < 10.9) problems.push("is small (" + size.toFixed(1) + " px): " + name(e));
      if (box.left < frame.left - 2 || box.right > frame.right + 2 || box.top < frame.top - 2
          || box.bottom > frame.bottom + 2) problems.push("leaves its chart: " + name(e));
    }
  }
  for (const chart of document.querySelectorAll("svg.chart")) {
    const texts = [...chart.querySelectorAll("text")].map(e => [e, e.getBoundingClientRect()]);
    texts.forEach(([e, a], i) => texts.slice(i + 1).forEach(([f, b]) => {
      const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (x > 2 && y > 5) problems.push("texts overlap: " + name(e) + " / " + name(f));
    }));
  }
  return problems;
}"""


@pytest.fixture(scope="module")
def browser():
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed: make test installs it")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium to look at the page with: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=program, args=FLAGS)
        yield started
        started.close()


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "light"),
        (390, "dark"),
        pytest.param(1280, "dark", marks=pytest.mark.soak),
        pytest.param(390, "light", marks=pytest.mark.soak),
    ],
)
@pytest.mark.parametrize("name", [case.__name__ for case in CASES])
def test_a_browser_shows_the_whole_page_readably(pages, browser, tmp_path, name, width, scheme):
    with browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True) as context:
        page = context.new_page()
        messages = []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(f"file://{pages[name]}")
        assert page.evaluate(FIND_PROBLEMS) == []
        page.screenshot(path=tmp_path / f"{name}-{width}-{scheme}.png", full_page=True)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate(FIND_PROBLEMS) == []
        assert messages == []


def test_a_click_on_a_heading_sorts_and_the_page_works_without_scripts(pages, browser):
    column = "#leaderboard > .scroll td:first-child"
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.goto(f"file://{pages['compare']}")
        page.get_by_role("button", name="training time").first.click()
        order = page.locator(column).all_inner_texts()
        assert order[:4] == ["rnn", "lstm", "gru", "transformer"] and len(order) == 8
        page.get_by_role("button", name="training time").first.click()
        assert page.locator(column).all_inner_texts()[:4] == ["transformer", "gru", "lstm", "rnn"]
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"file://{pages['compare']}")
        assert page.locator(column).all_inner_texts()[:2] == ["gru", "transformer"]
        assert page.get_by_role("button").count() == 0


def test_dark_mode_is_dark_and_print_is_white(pages, browser):
    colour = "getComputedStyle(document.body).backgroundColor"
    with browser.new_context(color_scheme="dark") as context:
        page = context.new_page()
        page.goto(f"file://{pages['train']}")
        assert page.evaluate(colour) == "rgb(14, 18, 22)"
        page.emulate_media(media="print")
        assert page.evaluate(colour) == "rgb(255, 255, 255)"
