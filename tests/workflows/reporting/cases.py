"""Results of trainings, searches and comparisons, of which the tests of the report build pages."""

from __future__ import annotations

import json
import math
import random
import re
import struct
import zlib

from datasets.pipeline.storage import Storage
from workflows.reporting.page import FILES

HOSTILE = '</svg><script src="http://x.y/z.js">alert(1)</script> $x_1$ "\' --> & Größe 日本語 \n' + "n" * 60
PNG = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", 900, 300, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress((b"\0" + b"\xdd" * 900) * 300)),
        (b"IEND", b""),
    )
)
EXPERIMENT = {
    "name": "demand",
    "dataset": {"kind": "generated", "days": 120},
    "task": {"kind": "forecast"},
    "model": {"family": "gru", "hidden_size": 64, "layers": 1},
    "training": {"epochs": 8},
    "tracking": {"uri": "http://me:hunter2@127.0.0.1:5000"},
}
FAMILIES = {"rnn": 0.57, "lstm": 0.46, "gru": 0.42, "transformer": 0.44}
BASELINES = {"naive": 1.7, "seasonal_naive": 0.66, "linear": 0.52}


def history(rng, best, epochs):
    """Falls towards `best`, with noise."""
    return [
        {
            "epoch": float(e),
            "step": 100.0 * (e + 1),
            "train/loss": best * (0.8 + 1.5 * math.exp(-e / 2)),
            "validation/loss": best * (0.9 + math.exp(-e / 2)),
            "train/epoch_seconds": 1.5,
            "validation/mse": best * (1 + math.exp(-e / 1.5) + 0.02 * rng.random()),
            "train/epoch_rows_per_second": 9000.0 + 100 * e,
        }
        for e in range(epochs)
    ]


def trial(rng, number, *, study="", family="gru", phase="search"):
    status = "finished" if phase == "final" else rng.choice(["finished", "finished", "stopped", "stopped", "failed"])
    settings = {
        "training.learning_rate": 10 ** rng.uniform(-4, -1.5),
        "model.hidden_size": rng.choice([32, 64, 128, 256]),
        "model.patch": rng.choice([6, 12, 24]),
        "training.schedule": rng.choice(["cosine", "constant"]),
    }
    if not study:
        settings["model.family"] = family
    if family == "transformer":
        settings["model.heads"] = rng.choice([2, 4])
    off = abs(math.log10(settings["training.learning_rate"]) + 2.6)
    best = FAMILIES[family] + 0.25 * off**2 + 0.05 * rng.random()
    epochs = history(rng, best, 3 if status == "stopped" else 8) if status != "failed" else []
    return {
        "number": number,
        "study": study,
        "phase": phase,
        "status": status,
        "settings": settings,
        "history": epochs,
        "reason": {
            "failed": "ValueError: the gradient is nan at step 7 (training.learning_rate=0.03); lower it",
            "stopped": "worse than half of the others after 3 epochs",
        }.get(status, ""),
        "best": min(h["validation/mse"] for h in epochs) if epochs else None,
        "node": f"10.0.0.{1 + number % 2}",
        "seconds": settings["model.hidden_size"] * 0.06 * (1 + len(epochs)),
        "memory": 210e6 + 1e5 * number,
        "parameters": settings["model.hidden_size"] ** 2 * 7 + 900,
        "run_id": f"{rng.getrandbits(128):032x}",
        "metrics": {"test/mse": best * (1 + 0.02 * rng.random())} if phase == "final" else {},
    }


def common(kind, trials):
    return {
        "kind": kind,
        "name": "demand",
        "command": f"python -m workflows {kind} workflows/experiments/demand.yaml "
        "search.trials=24 tracking.uri=http://me:hunter2@127.0.0.1:5000",
        "experiment": EXPERIMENT,
        "primary": "mse",
        "maximise": False,
        "space": {
            "training.learning_rate": {"loguniform": [1e-4, 3e-2]},
            "model.hidden_size": {"choice": [32, 64, 128, 256]},
            "model.patch": {"choice": [6, 12, 24]},
            "training.schedule": {"choice": ["cosine", "constant"]},
            "model.heads": {"choice": [2, 4], "when": {"model.family": "transformer"}},
        },
        "budget": {"trials": 24, "seconds": None, "searcher": "tpe", "scheduler": "asha", "seed": 0, "concurrent": 2},
        "trials": trials,
        "best_reachable": {"mse": 0.38},
        "importance": {
            "training.learning_rate": 0.71,
            "model.hidden_size": 0.17,
            "model.patch": 0.08,
            "training.schedule": 0.04,
        },
        "seconds": 401.0,
        "used": sum(t["seconds"] for t in trials),
        "run_id": "ab" * 16,
        "tracking": "http://me:hunter2@127.0.0.1:5000",
        "notes": ["The 2 trials that failed ran out of memory."],
        "versions": {"ray": "2.60.0", "torch": "2.13.0"},
    }


def search():
    rng = random.Random(1)
    trials = [trial(rng, n, family=rng.choice(["lstm", "gru", "transformer"])) for n in range(24)]
    ran = [t for t in trials if t["best"] is not None]
    best = min(ran, key=lambda t: t["best"])
    return common("search", trials) | {
        "space": common("search", [])["space"] | {"model.family": {"choice": ["lstm", "gru", "transformer"]}},
        "best": best["number"],
        "metrics": {"validation/mse": best["best"], "test/mse": 0.431, "test/mae": 0.44},
        "baselines": {m: {"validation/mse": v, "test/mse": v * 1.02, "test/mae": v} for m, v in BASELINES.items()},
    }


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
            "settings": final[0]["settings"],
            "parameters": final[0]["parameters"],
            "seconds": 9.0 + 4 * i,
            "rows_per_second": 9500.0 - 1800 * i,
            "latency_ms": {"p50": 1.1 + i, "p95": 2.3 + i},
            "memory": 250_000_000 + 4e7 * i,
            "failed": "",
            "metrics": {
                "test/mse": spread([t["metrics"]["test/mse"] for t in final]),
                "test/mae": {"mean": FAMILIES[family]},
            },
            "seeds": [
                {"seed": s, "number": t["number"], "run_id": t["run_id"], "metrics": t["metrics"]}
                for s, t in enumerate(final)
            ],
            "horizon": {"norms": [math.exp(-d / (2 + 3 * i)) for d in range(14)], "reach": 4 + 3 * i, "scale": 24.0},
        }
    pairs = [("gru", "transformer"), ("gru", "lstm"), ("gru", "rnn")]
    gaps = [FAMILIES[a] - FAMILIES[b] for a, b in pairs]
    return common("compare", trials) | {
        "judged": "test/mse",
        "families": families,
        "best": None,
        "metrics": {},
        "baselines": {m: {"test/mse": {"mean": v, "low": v, "high": v}} for m, v in BASELINES.items()},
        "differences": [
            {
                "a": a,
                "b": b,
                "difference": gap,
                "low": gap - 0.015,
                "high": gap + 0.015,
                "p": 0.11 - 0.05 * i,
                "adjusted": 0.11 - 0.05 * i,
                "significant": i == 2,
            }
            for i, ((a, b), gap) in enumerate(zip(pairs, gaps, strict=True))
        ],
        "verdict": "gru has the lowest test/mse, 0.42; it beats rnn beyond chance, but transformer may be as good.",
        "across": "dataset.length",
        "repeatable": "",
        "pictures": {f: f"pictures/{f}" for f in FAMILIES},
        "lengths": {
            str(n): {
                f: {
                    "mean": v * (1 + n / (100 + 300 * i)),
                    "low": v * (0.97 + n / (100 + 300 * i)),
                    "high": v * (1.03 + n / (100 + 300 * i)),
                }
                for i, (f, v) in enumerate(FAMILIES.items())
            }
            for n in (50, 200, 800)
        },
    }


def train():
    epochs = history(random.Random(3), 0.42, 8)
    return {
        "metrics": {"train/loss": 0.1, "validation/mse": epochs[-1]["validation/mse"], "test/mse": 0.427},
        "baselines": {m: {"validation/mse": v, "test/mse": v * 1.02} for m, v in BASELINES.items()},
        "seconds": 12.4,
        "steps": 800,
        "parameters": 26568,
        "best_step": 800,
        "history": epochs,
        "primary": "mse",
        "maximise": False,
        "signatures": {"bleu": "nrefs:1|case:mixed"},
        "best_reachable": {"mse": 0.38},
    }


def hostile():
    """A comparison whose names and texts try to break the page."""
    text = json.dumps(compare())
    for name in ("rnn", "model.patch", "model.heads", "constant", "naive", "10.0.0.1"):
        text = text.replace(f'"{name}"', json.dumps(HOSTILE + name))
    summary = json.loads(text.replace('mse"', json.dumps("<i>m$e$</i>")[1:]))
    return summary | {"name": HOSTILE, "notes": [HOSTILE], "verdict": HOSTILE, "repeatable": HOSTILE}


def missing():
    """A comparison with missing numbers, and a family that failed."""
    summary = compare()
    nothing = [math.nan, None, math.inf]
    for i, t in enumerate(summary["trials"]):
        t["best"] = t["best"] if i % 3 else nothing[i % 2]
        t["memory"] = t["parameters"] = t["run_id"] = t["seconds"] = None
        for h in t["history"]:
            h["validation/mse"] = math.nan if i % 2 else 1e9 * i
    gru, lstm = summary["families"]["gru"], summary["families"]["lstm"]
    gru |= {"failed": "ran out of memory", "metrics": {}, "seeds": [], "settings": {}}
    gru |= {"latency_ms": None, "horizon": None}
    for key in ("seconds", "rows_per_second", "memory", "parameters"):
        del gru[key]
    lstm["metrics"]["test/mse"] |= {"low": math.nan, "high": None, "seeds": [math.nan]}
    lstm["horizon"] |= {"norms": [1.0, 0.0, math.nan, None, 1e-9], "reach": None, "scale": 1.0}
    summary["baselines"] = {"naive": {"test/mse": math.nan}, "linear": {}, "mean": {"test/mse": 0.5}}
    summary["differences"][0] |= {"p": math.nan, "adjusted": None, "low": None, "difference": math.nan}
    return summary | {
        "importance": {"model.patch": math.nan},
        "best_reachable": {},
        "run_id": None,
        "lengths": {"short": {"gru": {"mean": math.nan, "low": None, "high": None}, "rnn": {"mean": 0.1, "low": 0.1}}},
    }


def failed():
    """A search whose trials all failed."""
    trials = [
        trial(random.Random(n), n)
        | {"status": "failed", "reason": f"out of memory {n}", "best": None, "history": [], "metrics": {}}
        for n in range(20)
    ]
    return search() | {"trials": trials, "best": None, "metrics": {}, "baselines": {}, "importance": {}}


def empty():
    return failed() | {"trials": [], "space": {}, "budget": {}, "notes": [], "versions": {}, "best_reachable": {}}


def decades():
    """A comparison on data that some families learn perfectly: their errors are powers of ten apart."""
    summary = compare()
    for i, f in enumerate(summary["families"].values()):
        f["metrics"]["test/mse"] = {
            "mean": 10.0**-i,
            "low": 0.7 * 10.0**-i,
            "high": 1.6 * 10.0**-i,
            "seeds": [10.0**-i, 1.2 * 10.0**-i],
        }
    return summary | {"baselines": {"mean": {"test/mse": 0.17}}, "best_reachable": {}}


def one_family():
    """A comparison of one family without a test split, by a metric whose highest value is best."""
    text = re.sub(r'(?:test|validation)/mse"', 'validation/accuracy"', json.dumps(compare()))
    summary = json.loads(text.replace('"mse"', '"accuracy"'))
    return summary | {
        "families": {"gru": summary["families"]["gru"]},
        "differences": [],
        "maximise": True,
        "trials": [t for t in summary["trials"] if t["study"] == "gru"],
        "lengths": None,
        "pictures": {},
    }


def many():
    rng = random.Random(5)
    return search() | {"trials": [trial(rng, n, family=rng.choice(["lstm", "gru", "transformer"])) for n in range(500)]}


def close():
    """A small comparison whose families are so close that names and intervals meet; one setting was tuned."""
    summary = compare()
    for i, f in enumerate(summary["families"].values()):
        mean = 0.27 - 0.0012 * i
        f |= {"seconds": 2.0 + 0.1 * i, "parameters": 26000 + 300 * i, "settings": {"training.learning_rate": 0.01}}
        f["metrics"] = {"test/mse": {"mean": mean, "low": mean - 0.013, "high": mean + 0.013, "seeds": [mean] * 3}} | {
            f"test/metric_{n}": {"mean": 0.5} for n in range(8)
        }
    finished = [t for t in summary["trials"] if t["status"] == "finished" and t["phase"] == "search"]
    trials = [
        t
        | {
            "settings": {"training.learning_rate": 0.001 * (1 + t["number"])},
            "seconds": 1 + 2 * (n // 3) + 0.1 * n,
            "best": 0.28 - 0.02 * (n // 3) - 0.0005 * n,
            "parameters": 26000 - 200 * n,
        }
        for n, t in enumerate(finished)
    ]
    return summary | {
        "trials": trials[:6],
        "space": {"training.learning_rate": {"loguniform": [1e-3, 1e-1]}},
        "importance": {},
        "verdict": "gru is best",
    }


CASES = [train, search, compare, hostile, missing, failed, empty, decades, one_family, close, many]


def save(folder, summary):
    """Write the folder of a run as `workflows` leaves it."""
    kind = summary.get("kind", "train")
    (folder / FILES[kind]).parent.mkdir(parents=True, exist_ok=True)
    (folder / FILES[kind]).write_text(json.dumps(summary))
    if kind == "train":
        (folder / "experiment.yaml").write_text(json.dumps(EXPERIMENT))
    for pictures in (summary.get("pictures") or {"": "pictures"}).values():
        (folder / pictures).mkdir(parents=True, exist_ok=True)
        (folder / pictures / "forecasts.png").write_bytes(PNG)
        (folder / pictures / "learning_curve.png").write_bytes(PNG)
    return Storage(folder)
