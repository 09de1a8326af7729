"""The pages of reports: their sections, texts, tables and links."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import pytest

from datasets.pipeline.storage import Storage
from tests.workflows.reporting.cases import CASES, compare, missing, save, search, train
from workflows import strict_json
from workflows.reporting import charts, drawing, marks
from workflows.reporting.page import FILES, build


class Reader(HTMLParser):
    """Reads the tags, ids, links and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.text, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [
            (tag, k, v)
            for k, v in attributes.items()
            if k in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background")
        ]
        if tag not in ("meta", "img", "path", "use", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("meta", "img", "path", "use", "rect", "br"):
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.text.append((self.open[-1] if self.open else "", data))

    @property
    def shown(self):
        return " ".join(" ".join(t for tag, t in self.text if tag not in ("style", "script")).split())


def read(pages, name):
    with open(pages[name], encoding="utf-8") as file:
        text = file.read()
    return text, Reader(text)


SECTIONS = {
    "train": ["scores", "learning", "examples", "runs", "reproduce", "notes"],
    "search": [
        "leaderboard",
        "scores",
        "learning",
        "settings",
        "costs",
        "examples",
        "budget",
        "runs",
        "reproduce",
        "notes",
    ],
    "compare": [
        "leaderboard",
        "differences",
        "lengths",
        "learning",
        "horizon",
        "costs",
        "settings",
        "examples",
        "budget",
        "runs",
        "reproduce",
        "notes",
    ],
    "failed": ["leaderboard", "examples", "budget", "runs", "reproduce", "notes"],
    "empty": ["leaderboard", "examples", "budget", "runs", "reproduce"],
}


@pytest.mark.parametrize("name", [case.__name__ for case in CASES])
def test_a_page_loads_nothing(pages, name):
    text, page = read(pages, name)
    for tag, attribute, value in page.links:
        assert value.startswith(("#", "data:image/png;base64,")), (tag, attribute, value[:80])
    assert not [t for t, _ in page.tags if t in ("link", "iframe", "object", "embed", "base", "form")]
    assert [attributes for t, attributes in page.tags if t == "script"] == [{}]  # ours, inline
    assert not re.search(r"@import|@font-face|url\((?!#)", text)
    assert not page.open, "an element is not closed"


@pytest.mark.parametrize("name", [case.__name__ for case in CASES])
def test_ids_are_unique_and_every_reference_has_its_id(pages, name):
    text, page = read(pages, name)
    assert len(page.ids) == len(set(page.ids))
    wanted = {v[1:] for _, _, v in page.links if v.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert wanted <= set(page.ids)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_page_has_its_sections_in_their_order(pages, name):
    _, page = read(pages, name)
    assert [attributes["id"] for t, attributes in page.tags if t == "section"] == SECTIONS[name]


@pytest.mark.parametrize("name", [case.__name__ for case in CASES])
def test_charts_have_a_description_and_the_colours_of_the_page(pages, name):
    text, page = read(pages, name)
    drawn = [attributes for t, attributes in page.tags if t == "svg" and attributes.get("class") == "chart"]
    assert all(attributes["role"] == "img" and len(attributes["aria-label"]) > 30 for attributes in drawn)
    assert not re.search(r"#0101\w\w", text), "a placeholder of a colour was not replaced"
    inside = "".join(re.findall(r'<svg class="chart".*?</svg>', text, re.DOTALL))
    assert not re.search(r"(?:fill|stroke): #", inside), "a colour does not come from the style sheet"


def test_names_from_the_data_are_escaped(pages):
    text, page = read(pages, "hostile")
    assert "<script src" not in text and "<i>" not in text
    assert "alert(1)</script> $x_1$ \"' --> & Größe 日本語" in page.shown
    assert "<i>m$e$</i>" in page.shown


@pytest.mark.parametrize("case", [missing, train, search])
def test_a_page_of_nulls_is_that_of_the_bare_nans_that_older_versions_wrote(tmp_path, case):
    summary = case()
    if case is not missing:
        summary["best_reachable"] |= {"mse": math.nan}
        summary["baselines"]["naive"] |= dict.fromkeys(summary["baselines"]["naive"], -math.inf)
        for h in [*summary.get("history", []), *(h for t in summary.get("trials", []) for h in t["history"][1:])]:
            h |= {"validation/mse": math.nan, "train/epoch_rows_per_second": math.inf}
    file, pages = FILES[summary.get("kind", "train")], []
    for folder, dumps in ((tmp_path / "old/run", json.dumps), (tmp_path / "new/run", strict_json.dumps)):
        save(folder, summary)
        (folder / file).write_text(dumps(summary))
        pages.append(Reader(build(Storage(folder))).shown)
    assert "NaN" in (tmp_path / "old/run" / file).read_text()
    assert pages[0] == pages[1]


def test_users_and_passwords_are_left_out(pages):
    for name in ("train", "search", "compare"):
        text, page = read(pages, name)
        assert "hunter2" not in text and "//me" not in text and "http://127.0.0.1:5000" in page.shown


def test_a_training_is_compared_with_the_best_baseline(pages):
    _, page = read(pages, "train")
    assert "mse 0.427 on test, 19 % below linear. The best that any model can reach is 0.38." in page.shown


def test_a_model_worse_than_the_baseline_is_reported_as_worse(tmp_path):
    summary = train()
    summary["metrics"]["test/mse"] = 0.6
    assert "mse 0.6 on test, 13 % above linear" in Reader(build(save(tmp_path, summary))).shown


def test_the_verdict_of_a_search_names_the_best_trial_and_its_advantage(pages):
    summary = search()
    best = next(t for t in summary["trials"] if t["number"] == summary["best"])
    _, page = read(pages, "search")
    match = re.search(r"Trial (\d+) is the best of 24: validation/mse ([\d.]+) .* \d+ % below the median", page.shown)
    assert match and int(match[1]) == summary["best"] and float(match[2]) == pytest.approx(best["best"], rel=1e-3)
    assert best["run_id"] in page.shown


def test_the_leaderboard_ranks_all_trials_with_a_result(pages):
    text, _ = read(pages, "search")
    table = text[text.index('aria-label="table: trials"') :].partition("</table>")[0]
    numbers = [int(n) for n in re.findall(r"<td[^>]*>#(\d+)</td>", table)]
    ran = sorted((t for t in search()["trials"] if t["best"] is not None), key=lambda t: t["best"])
    assert numbers == [t["number"] for t in ran] and len(numbers) > 10


def test_a_search_without_any_result_gives_the_reason(pages):
    assert "None of the 20 trials has a result. The first failure: out of memory 0" in read(pages, "failed")[1].shown
    assert "No trial was started" in read(pages, "empty")[1].shown


def test_every_figure_of_a_comparison_has_its_mlflow_run(pages):
    summary = compare()
    _, page = read(pages, "compare")
    wanted = {s["run_id"] for f in summary["families"].values() for s in f["seeds"]}
    assert wanted | {t["run_id"] for t in summary["trials"]} <= set(page.shown.split())
    titles = " ".join(d["title"] for t, d in page.tags if t == "td" and "title" in d)
    assert all(run_id in titles for run_id in wanted)


def test_a_failed_family_is_in_the_leaderboard_with_its_reason(pages):
    assert "gru failed ran out of memory" in read(pages, "missing")[1].shown


def test_the_best_is_the_highest_if_the_metric_is_maximised(tmp_path):
    summary = compare() | {"maximise": True, "verdict": ""}
    text = build(save(tmp_path, summary))
    assert "rnn is the best by test/mse." in Reader(text).shown and "gru is the best" not in text


def test_the_same_run_gives_the_same_page(pages, tmp_path):
    for case in (train, search, compare):
        assert build(save(tmp_path / f"{case.__name__}0", case())) == read(pages, case.__name__)[0]


def test_pages_are_small(pages):
    assert len(read(pages, "search")[0]) < 300_000 and len(read(pages, "many")[0]) < 2_000_000


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no finished run: it has none of compare.json, search.json, result.json"):
        build(Storage(tmp_path))
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no finished run: it has no experiment.yaml"):
        build(Storage(tmp_path))
    (tmp_path / "search.json").write_text('{"kind": ')
    with pytest.raises(ValueError, match=r"search.json cannot be read"):
        build(Storage(tmp_path))


def test_the_pareto_front_has_the_points_that_none_beats_in_both():
    points = [marks.CostPoint(c, v) for c, v in [(1, 5), (2, 6), (3, 3), (3, 4), (9, 3), (10, 1)]]
    assert [(p.cost, p.value) for p in charts.pareto_front(points, maximise=False)] == [(1, 5), (3, 3), (10, 1)]
    assert [(p.cost, p.value) for p in charts.pareto_front(points, maximise=True)] == [(1, 5), (2, 6)]


def test_numbers_have_four_significant_digits():
    numbers = [0.36514, 26568, 5900.0, 0.00001234, -0.02, math.nan, None, math.inf, True, 0]
    assert [drawing.format_number(v) for v in numbers] == [
        "0.3651",
        "26,568",
        "5,900",
        "1.234 × 10^−5",
        "−0.02",
        "–",
        "–",
        "∞",
        "True",
        "0",
    ]
