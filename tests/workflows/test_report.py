"""The page of a run, of made-up results of every kind: what stands in it, and how a real browser shows it."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import re
import shutil
import struct
import zlib
from html.parser import HTMLParser

import pytest

from datasets.storage import Storage
from workflows import charts, report, strict_json

HOSTILE = '</svg><script src="http://x.y/z.js">alert(1)</script> $x_1$ "\' --> & Größe 日本語 \n' + "n" * 60
PNG = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", 900, 300, 8, 0, 0, 0, 0)),
                       (b"IDAT", zlib.compress((b"\0" + b"\xdd" * 900) * 300)), (b"IEND", b"")))
EXPERIMENT = {"name": "demand", "dataset": {"kind": "generated", "days": 120}, "task": {"kind": "forecast"},
              "model": {"family": "gru", "hidden_size": 64, "layers": 1}, "training": {"epochs": 8},
              "tracking": {"uri": "http://me:hunter2@127.0.0.1:5000"}}
FAMILIES = {"rnn": 0.57, "lstm": 0.46, "gru": 0.42, "transformer": 0.44}
BASELINES = {"naive": 1.7, "seasonal_naive": 0.66, "linear": 0.52}


def history(rng, best, epochs):
    """Falls towards `best`, with noise."""
    return [{"epoch": float(e), "step": 100.0 * (e + 1), "train/loss": best * (0.8 + 1.5 * math.exp(-e / 2)),
             "validation/loss": best * (0.9 + math.exp(-e / 2)), "train/epoch_seconds": 1.5,
             "validation/mse": best * (1 + math.exp(-e / 1.5) + 0.02 * rng.random()),
             "train/epoch_rows_per_second": 9000.0 + 100 * e} for e in range(epochs)]


def trial(rng, number, *, study="", family="gru", phase="search"):
    status = "finished" if phase == "final" else rng.choice(["finished", "finished", "stopped", "stopped", "failed"])
    settings = {"training.learning_rate": 10 ** rng.uniform(-4, -1.5),
                "model.hidden_size": rng.choice([32, 64, 128, 256]), "model.patch": rng.choice([6, 12, 24]),
                "training.schedule": rng.choice(["cosine", "constant"])}
    if not study:
        settings["model.family"] = family
    if family == "transformer":
        settings["model.heads"] = rng.choice([2, 4])
    off = abs(math.log10(settings["training.learning_rate"]) + 2.6)
    best = FAMILIES[family] + 0.25 * off ** 2 + 0.05 * rng.random()
    told = history(rng, best, 3 if status == "stopped" else 8) if status != "failed" else []
    return {"number": number, "study": study, "phase": phase, "status": status, "settings": settings, "history": told,
            "reason": {"failed": "ValueError: the gradient is nan at step 7 (training.learning_rate=0.03); lower it",
                       "stopped": "worse than half of the others after 3 epochs"}.get(status, ""),
            "best": min(h["validation/mse"] for h in told) if told else None, "node": f"10.0.0.{1 + number % 2}",
            "seconds": settings["model.hidden_size"] * 0.06 * (1 + len(told)), "memory": 210e6 + 1e5 * number,
            "parameters": settings["model.hidden_size"] ** 2 * 7 + 900, "run_id": f"{rng.getrandbits(128):032x}",
            "metrics": {"test/mse": best * (1 + 0.02 * rng.random())} if phase == "final" else {}}


def common(kind, trials):
    return {
        "kind": kind, "name": "demand", "command": f"python -m workflows {kind} workflows/experiments/demand.yaml "
        "search.trials=24 tracking.uri=http://me:hunter2@127.0.0.1:5000", "experiment": EXPERIMENT, "primary": "mse",
        "maximise": False, "space": {
            "training.learning_rate": {"loguniform": [1e-4, 3e-2]}, "model.hidden_size": {"choice": [32, 64, 128, 256]},
            "model.patch": {"choice": [6, 12, 24]}, "training.schedule": {"choice": ["cosine", "constant"]},
            "model.heads": {"choice": [2, 4], "when": {"model.family": "transformer"}}},
        "budget": {"trials": 24, "seconds": None, "searcher": "tpe", "scheduler": "asha", "seed": 0, "concurrent": 2},
        "trials": trials, "best_reachable": {"mse": 0.38}, "importance": {"training.learning_rate": 0.71,
        "model.hidden_size": 0.17, "model.patch": 0.08, "training.schedule": 0.04}, "seconds": 401.0,
        "used": sum(t["seconds"] for t in trials), "run_id": "ab" * 16, "tracking": "http://me:hunter2@127.0.0.1:5000",
        "notes": ["The 2 trials that failed ran out of memory."], "versions": {"ray": "2.60.0", "torch": "2.13.0"}}


def search():
    rng = random.Random(1)
    trials = [trial(rng, n, family=rng.choice(["lstm", "gru", "transformer"])) for n in range(24)]
    ran = [t for t in trials if t["best"] is not None]
    best = min(ran, key=lambda t: t["best"])
    return common("search", trials) | {
        "space": common("search", [])["space"] | {"model.family": {"choice": ["lstm", "gru", "transformer"]}},
        "best": best["number"], "metrics": {"validation/mse": best["best"], "test/mse": 0.431, "test/mae": 0.44},
        "baselines": {m: {"validation/mse": v, "test/mse": v * 1.02, "test/mae": v} for m, v in BASELINES.items()}}


def spread(values):
    mean = sum(values) / len(values)
    return {"mean": mean, "low": mean - 0.012, "high": mean + 0.012, "seeds": values}


def compare():
    rng = random.Random(2)
    trials = [trial(rng, 8 * i + n, study=f, family=f) for i, f in enumerate(FAMILIES) for n in range(8)]
    families = {}
    for i, family in enumerate(FAMILIES):
        final = [trial(rng, 32 + 3 * i + s, study=family, family=family, phase="final") for s in range(3)]
        for t in final:
            t["metrics"]["test/mse"] = FAMILIES[family] + 0.02 * (rng.random() - 0.5)
            t["history"] = history(rng, FAMILIES[family], 8)
        trials += final
        families[family] = {
            "settings": final[0]["settings"], "parameters": final[0]["parameters"], "seconds": 9.0 + 4 * i,
            "rows_per_second": 9500.0 - 1800 * i, "latency_ms": {"p50": 1.1 + i, "p95": 2.3 + i},
            "memory": 250_000_000 + 4e7 * i, "failed": "", "metrics": {
                "test/mse": spread([t["metrics"]["test/mse"] for t in final]), "test/mae": {"mean": FAMILIES[family]}},
            "seeds": [{"seed": s, "number": t["number"], "run_id": t["run_id"], "metrics": t["metrics"]}
                      for s, t in enumerate(final)],
            "horizon": {"norms": [math.exp(-d / (2 + 3 * i)) for d in range(14)], "reach": 4 + 3 * i, "scale": 24.0}}
    pairs = [("gru", "transformer"), ("gru", "lstm"), ("gru", "rnn")]
    gaps = [FAMILIES[a] - FAMILIES[b] for a, b in pairs]
    return common("compare", trials) | {
        "judged": "test/mse", "families": families, "best": None, "metrics": {},
        "baselines": {m: {"test/mse": {"mean": v, "low": v, "high": v}} for m, v in BASELINES.items()},
        "differences": [{"a": a, "b": b, "difference": gap, "low": gap - 0.015, "high": gap + 0.015,
                         "p": 0.11 - 0.05 * i, "adjusted": 0.11 - 0.05 * i, "significant": i == 2}
                        for i, ((a, b), gap) in enumerate(zip(pairs, gaps, strict=True))],
        "verdict": "gru has the lowest test/mse, 0.42; it beats rnn beyond chance, but transformer may be as good.",
        "across": "dataset.length", "repeatable": "", "pictures": {f: f"pictures/{f}" for f in FAMILIES},
        "lengths": {str(n): {f: {"mean": v * (1 + n / (100 + 300 * i)), "low": v * (0.97 + n / (100 + 300 * i)),
                                 "high": v * (1.03 + n / (100 + 300 * i))} for i, (f, v) in enumerate(FAMILIES.items())}
                    for n in (50, 200, 800)}}


def train():
    told = history(random.Random(3), 0.42, 8)
    return {"metrics": {"train/loss": 0.1, "validation/mse": told[-1]["validation/mse"], "test/mse": 0.427},
            "baselines": {m: {"validation/mse": v, "test/mse": v * 1.02} for m, v in BASELINES.items()},
            "seconds": 12.4, "steps": 800, "parameters": 26568, "best_step": 800, "history": told, "primary": "mse",
            "maximise": False, "signatures": {"bleu": "nrefs:1|case:mixed"}, "best_reachable": {"mse": 0.38}}


def hostile():
    """A comparison in which all that is named is named to do harm."""
    text = json.dumps(compare())
    for name in ("rnn", "model.patch", "model.heads", "constant", "naive", "10.0.0.1"):
        text = text.replace(f'"{name}"', json.dumps(HOSTILE + name))
    told = json.loads(text.replace('mse"', json.dumps("<i>m$e$</i>")[1:]))
    return told | {"name": HOSTILE, "notes": [HOSTILE], "verdict": HOSTILE, "repeatable": HOSTILE}


def holes():
    """A comparison with nothing where a number may stand, and a family that failed."""
    told = compare()
    nothing = [math.nan, None, math.inf]
    for i, t in enumerate(told["trials"]):
        t["best"] = t["best"] if i % 3 else nothing[i % 2]
        t["memory"] = t["parameters"] = t["run_id"] = t["seconds"] = None
        for h in t["history"]:
            h["validation/mse"] = math.nan if i % 2 else 1e9 * i
    gru, lstm = told["families"]["gru"], told["families"]["lstm"]
    gru |= {"failed": "ran out of memory", "metrics": {}, "seeds": [], "settings": {}}
    gru |= {"latency_ms": None, "horizon": None}
    for key in ("seconds", "rows_per_second", "memory", "parameters"):
        del gru[key]
    lstm["metrics"]["test/mse"] |= {"low": math.nan, "high": None, "seeds": [math.nan]}
    lstm["horizon"] |= {"norms": [1.0, 0.0, math.nan, None, 1e-9], "reach": None, "scale": 1.0}
    told["baselines"] = {"naive": {"test/mse": math.nan}, "linear": {}, "mean": {"test/mse": 0.5}}
    told["differences"][0] |= {"p": math.nan, "adjusted": None, "low": None, "difference": math.nan}
    return told | {"importance": {"model.patch": math.nan}, "best_reachable": {}, "run_id": None, "lengths": {
        "short": {"gru": {"mean": math.nan, "low": None, "high": None}, "rnn": {"mean": 0.1, "low": 0.1}}}}


def failed():
    """A search none of whose trials came to a result."""
    trials = [trial(random.Random(n), n) | {"status": "failed", "reason": f"out of memory {n}", "best": None,
              "history": [], "metrics": {}} for n in range(20)]
    return search() | {"trials": trials, "best": None, "metrics": {}, "baselines": {}, "importance": {}}


def empty():
    return failed() | {"trials": [], "space": {}, "budget": {}, "notes": [], "versions": {}, "best_reachable": {}}


def decades():
    """A probe that some families solve: their errors are powers of ten apart."""
    told = compare()
    for i, f in enumerate(told["families"].values()):
        f["metrics"]["test/mse"] = {"mean": 10.0 ** -i, "low": 0.7 * 10.0 ** -i, "high": 1.6 * 10.0 ** -i,
                                    "seeds": [10.0 ** -i, 1.2 * 10.0 ** -i]}
    return told | {"baselines": {"mean": {"test/mse": 0.17}}, "best_reachable": {}}


def lonely():
    """A comparison of one family, judged on validation, by a metric of which more is better."""
    text = re.sub(r'(?:test|validation)/mse"', 'validation/accuracy"', json.dumps(compare()))
    told = json.loads(text.replace('"mse"', '"accuracy"'))
    return told | {"families": {"gru": told["families"]["gru"]}, "differences": [], "maximise": True,
                   "trials": [t for t in told["trials"] if t["study"] == "gru"], "lengths": None, "pictures": {}}


def crowd():
    rng = random.Random(5)
    return search() | {"trials": [trial(rng, n, family=rng.choice(["lstm", "gru", "transformer"])) for n in range(500)]}


def close():
    """A small comparison whose families lie so close that names and intervals meet; one setting was tuned."""
    told = compare()
    for i, f in enumerate(told["families"].values()):
        mean = 0.27 - 0.0012 * i
        f |= {"seconds": 2.0 + 0.1 * i, "parameters": 26000 + 300 * i, "settings": {"training.learning_rate": 0.01}}
        f["metrics"] = {"test/mse": {"mean": mean, "low": mean - 0.013, "high": mean + 0.013, "seeds": [mean] * 3}} | {
            f"test/metric_{n}": {"mean": 0.5} for n in range(8)}
    finished = [t for t in told["trials"] if t["status"] == "finished" and t["phase"] == "search"]
    trials = [t | {"settings": {"training.learning_rate": 0.001 * (1 + t["number"])},
                   "seconds": 1 + 2 * (n // 3) + 0.1 * n, "best": 0.28 - 0.02 * (n // 3) - 0.0005 * n,
                   "parameters": 26000 - 200 * n} for n, t in enumerate(finished)]
    return told | {"trials": trials[:6], "space": {"training.learning_rate": {"loguniform": [1e-3, 1e-1]}},
                   "importance": {}, "verdict": "gru is best"}


CASES = [train, search, compare, hostile, holes, failed, empty, decades, lonely, close, crowd]


def save(folder, told):
    """A run's folder as `workflows` leaves it."""
    kind = told.get("kind", "train")
    (folder / report.FILES[kind]).parent.mkdir(parents=True, exist_ok=True)
    (folder / report.FILES[kind]).write_text(json.dumps(told))
    if kind == "train":
        (folder / "experiment.yaml").write_text(json.dumps(EXPERIMENT))
    for pictures in (told.get("pictures") or {"": "pictures"}).values():
        (folder / pictures).mkdir(parents=True, exist_ok=True)
        (folder / pictures / "forecasts.png").write_bytes(PNG)
        (folder / pictures / "learning_curve.png").write_bytes(PNG)
    return Storage(folder)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Every case as a file: name -> path."""
    made = {}
    for case in CASES:
        folder = tmp_path_factory.mktemp("pages") / f"{case.__name__}0"
        made[case.__name__] = report.write(save(folder, case()))
    return made


class Reader(HTMLParser):
    """What a page refers to, names, and says."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.text, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        self.tags.append((tag, told))
        self.ids += [told["id"]] if "id" in told else []
        self.links += [(tag, k, v) for k, v in told.items() if k in ("src", "href", "xlink:href", "srcset", "action",
                                                                    "data", "poster", "background")]
        if tag not in ("meta", "img", "path", "use", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("meta", "img", "path", "use", "rect", "br"):
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.text.append((self.open[-1] if self.open else "", data))

    @property
    def said(self):
        return " ".join(" ".join(t for tag, t in self.text if tag not in ("style", "script")).split())


def read(pages, name):
    with open(pages[name], encoding="utf-8") as file:
        text = file.read()
    return text, Reader(text)


SECTIONS = {
    "train": ["scores", "learning", "examples", "runs", "reproduce", "notes"],
    "search": ["leaderboard", "scores", "learning", "settings", "costs", "examples", "budget", "runs", "reproduce",
               "notes"],
    "compare": ["leaderboard", "differences", "lengths", "learning", "horizon", "costs", "settings", "examples",
                "budget", "runs", "reproduce", "notes"],
    "failed": ["leaderboard", "examples", "budget", "runs", "reproduce", "notes"],
    "empty": ["leaderboard", "examples", "budget", "runs", "reproduce"],
}


@pytest.mark.parametrize("name", [case.__name__ for case in CASES])
def test_a_page_needs_nothing_from_elsewhere(pages, name):
    text, page = read(pages, name)
    for tag, attribute, value in page.links:
        assert value.startswith(("#", "data:image/png;base64,")), (tag, attribute, value[:80])
    assert not [t for t, _ in page.tags if t in ("link", "iframe", "object", "embed", "base", "form")]
    assert [told for t, told in page.tags if t == "script"] == [{}]               # ours, inline
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
    assert [told["id"] for t, told in page.tags if t == "section"] == SECTIONS[name]


@pytest.mark.parametrize("name", [case.__name__ for case in CASES])
def test_charts_are_named_for_those_who_cannot_see_them_and_take_their_colours_from_the_page(pages, name):
    text, page = read(pages, name)
    drawn = [told for t, told in page.tags if t == "svg" and told.get("class") == "chart"]
    assert all(told["role"] == "img" and len(told["aria-label"]) > 30 for told in drawn)
    assert not re.search(r"#0101\w\w", text), "a stand-in is left"
    inside = "".join(re.findall(r'<svg class="chart".*?</svg>', text, re.DOTALL))
    assert not re.search(r"(?:fill|stroke): #", inside), "a colour that does not change with the page"


def test_text_of_the_data_stays_text(pages):
    text, page = read(pages, "hostile")
    assert "<script src" not in text and "<i>" not in text
    assert "alert(1)</script> $x_1$ \"' --> & Größe 日本語" in page.said
    assert "<i>m$e$</i>" in page.said


@pytest.mark.parametrize("case", [holes, train, search])
def test_a_page_of_nulls_is_that_of_the_bare_nans_that_older_versions_wrote(tmp_path, case):
    told = case()
    if case is not holes:
        told["best_reachable"] |= {"mse": math.nan}
        told["baselines"]["naive"] |= dict.fromkeys(told["baselines"]["naive"], -math.inf)
        for h in [*told.get("history", []), *(h for t in told.get("trials", []) for h in t["history"][1:])]:
            h |= {"validation/mse": math.nan, "train/epoch_rows_per_second": math.inf}
    file, pages = report.FILES[told.get("kind", "train")], []
    for folder, dumps in ((tmp_path / "old/run", json.dumps), (tmp_path / "new/run", strict_json.dumps)):
        save(folder, told)
        (folder / file).write_text(dumps(told))
        pages.append(Reader(report.build(Storage(folder))).said)
    assert "NaN" in (tmp_path / "old/run" / file).read_text()
    assert pages[0] == pages[1]


def test_users_and_passwords_are_left_out(pages):
    for name in ("train", "search", "compare"):
        text, page = read(pages, name)
        assert "hunter2" not in text and "//me" not in text and "http://127.0.0.1:5000" in page.said


def test_a_training_is_held_against_the_best_simple_method(pages):
    _, page = read(pages, "train")
    assert "mse 0.427 on test, 19 % below linear. The best that can be reached is 0.38." in page.said


def test_a_worse_model_is_said_to_be_worse(tmp_path):
    told = train()
    told["metrics"]["test/mse"] = 0.6
    assert "mse 0.6 on test, 13 % above linear" in Reader(report.build(save(tmp_path, told))).said


def test_a_search_says_what_won_and_by_how_much(pages):
    told = search()
    best = next(t for t in told["trials"] if t["number"] == told["best"])
    _, page = read(pages, "search")
    said = re.search(r"Trial (\d+) is the best of 24: validation/mse ([\d.]+) .* \d+ % below the median", page.said)
    assert said and int(said[1]) == told["best"] and float(said[2]) == pytest.approx(best["best"], rel=1e-3)
    assert best["run_id"] in page.said


def test_the_leaderboard_begins_with_the_best_trial_and_has_every_one_with_a_result(pages):
    text, _ = read(pages, "search")
    table = text[text.index('aria-label="table: trials"'):].partition("</table>")[0]
    numbers = [int(n) for n in re.findall(r"<td[^>]*>#(\d+)</td>", table)]
    ran = sorted((t for t in search()["trials"] if t["best"] is not None), key=lambda t: t["best"])
    assert numbers == [t["number"] for t in ran] and len(numbers) > 10


def test_a_search_without_any_result_says_so_and_why(pages):
    assert "None of the 20 trials came to a result. The first failure: out of memory 0" in read(pages, "failed")[1].said
    assert "No trial was started" in read(pages, "empty")[1].said


def test_every_figure_of_a_comparison_leads_to_its_mlflow_run(pages):
    told = compare()
    _, page = read(pages, "compare")
    wanted = {s["run_id"] for f in told["families"].values() for s in f["seeds"]}
    assert wanted | {t["run_id"] for t in told["trials"]} <= set(page.said.split())
    titles = " ".join(d["title"] for t, d in page.tags if t == "td" and "title" in d)
    assert all(run_id in titles for run_id in wanted)


def test_a_family_that_failed_stands_in_the_leaderboard_with_its_reason(pages):
    assert "gru failed ran out of memory" in read(pages, "holes")[1].said


def test_the_best_is_the_highest_where_more_is_better(tmp_path):
    told = compare() | {"maximise": True, "verdict": ""}
    text = report.build(save(tmp_path, told))
    assert "rnn is the best by test/mse." in Reader(text).said and "gru is the best" not in text


def test_the_same_run_gives_the_same_page(pages, tmp_path):
    for case in (train, search, compare):
        assert report.build(save(tmp_path / f"{case.__name__}0", case())) == read(pages, case.__name__)[0]


def test_pages_are_small(pages):
    assert len(read(pages, "search")[0]) < 300_000 and len(read(pages, "crowd")[0]) < 2_000_000


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no finished run: it has none of compare.json, search.json, result.json"):
        report.build(Storage(tmp_path))
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no finished run: it has no experiment.yaml"):
        report.build(Storage(tmp_path))
    (tmp_path / "search.json").write_text('{"kind": ')
    with pytest.raises(ValueError, match=r"search.json cannot be read"):
        report.build(Storage(tmp_path))


def test_the_front_holds_what_nothing_beats_in_both():
    points = [charts.Point(c, v) for c, v in [(1, 5), (2, 6), (3, 3), (3, 4), (9, 3), (10, 1)]]
    assert [(p.cost, p.value) for p in charts.front(points, maximise=False)] == [(1, 5), (3, 3), (10, 1)]
    assert [(p.cost, p.value) for p in charts.front(points, maximise=True)] == [(1, 5), (2, 6)]


def test_numbers_are_written_to_be_read():
    told = [0.36514, 26568, 5900.0, 0.00001234, -0.02, math.nan, None, math.inf, True, 0]
    assert [charts.number(v) for v in told] == ["0.3651", "26,568", "5,900", "1.234 × 10^−5", "−0.02", "–", "–", "∞",
                                                "True", "0"]


# In a real browser.

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
LOOK = """() => {
  const wide = innerWidth, found = [];
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
  if (document.documentElement.scrollWidth > wide) found.push("the page is wider than the screen");
  for (const e of document.body.querySelectorAll("*")) {
    if (!e.checkVisibility() || e.closest("defs") || e.closest("script")) continue;
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (!boxed(e) && !e.closest("svg") && (box.right > wide + 1 || box.left < -1)) found.push("sticks out: " + name(e));
    if (["hidden", "clip"].includes(style.overflowX) && !e.closest("svg") && e.scrollWidth > e.clientWidth + 1)
      found.push("is clipped: " + name(e));
    if (["SECTION", "svg", "FIGURE", "IMG", "TABLE"].includes(e.tagName) && !(box.width > 8 && box.height > 8))
      found.push("has no size: " + name(e));
    if (e.tagName === "TD" && !e.classList.contains("long") && e.textContent.trim().length <= 24 && box.height > 48
        && e.parentElement.cells.length > 1 && ![...e.parentElement.cells].some(c => c.matches(".long, .wrap")))
      found.push("is broken into lines: " + name(e));
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own) continue;
    const svg = e.tagName === "text";
    const [a, b] = [light(rgb(svg ? style.fill : style.color)), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push("is hard to read: " + name(e));
    if (svg) {
      const chart = e.ownerSVGElement, frame = chart.getBoundingClientRect();
      const size = parseFloat(style.fontSize) * frame.width / chart.viewBox.baseVal.width;
      if (size < 10.9) found.push("is small (" + size.toFixed(1) + " px): " + name(e));
      if (box.left < frame.left - 2 || box.right > frame.right + 2 || box.top < frame.top - 2
          || box.bottom > frame.bottom + 2) found.push("leaves its chart: " + name(e));
    }
  }
  for (const chart of document.querySelectorAll("svg.chart")) {
    const texts = [...chart.querySelectorAll("text")].map(e => [e, e.getBoundingClientRect()]);
    texts.forEach(([e, a], i) => texts.slice(i + 1).forEach(([f, b]) => {
      const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (x > 2 && y > 5) found.push("texts overlap: " + name(e) + " / " + name(f));
    }));
  }
  return found;
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", [case.__name__ for case in CASES])
def test_a_browser_shows_it_whole_and_readable(pages, browser, tmp_path, name, width, scheme):
    with browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True) as context:
        page = context.new_page()
        heard = []
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.goto(f"file://{pages[name]}")
        assert page.evaluate(LOOK) == []
        page.screenshot(path=tmp_path / f"{name}-{width}-{scheme}.png", full_page=True)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate(LOOK) == []
        assert heard == []


def test_a_click_on_a_heading_sorts_and_without_scripts_all_stands_there_too(pages, browser):
    column = "#leaderboard > .scroll td:first-child"
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.goto(f"file://{pages['compare']}")
        page.get_by_role("button", name="trained").first.click()
        order = page.locator(column).all_inner_texts()
        assert order[:4] == ["rnn", "lstm", "gru", "transformer"] and len(order) == 8
        page.get_by_role("button", name="trained").first.click()
        assert page.locator(column).all_inner_texts()[:4] == ["transformer", "gru", "lstm", "rnn"]
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"file://{pages['compare']}")
        assert page.locator(column).all_inner_texts()[:2] == ["gru", "transformer"]
        assert page.get_by_role("button").count() == 0


def test_dark_is_dark_and_paper_is_white(pages, browser):
    colour = "getComputedStyle(document.body).backgroundColor"
    with browser.new_context(color_scheme="dark") as context:
        page = context.new_page()
        page.goto(f"file://{pages['train']}")
        assert page.evaluate(colour) == "rgb(14, 18, 22)"
        page.emulate_media(media="print")
        assert page.evaluate(colour) == "rgb(255, 255, 255)"
