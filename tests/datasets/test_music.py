"""Music: pieces to rolls, what cannot be used, and the MIDI files that are written."""

import io
import json

import mido
import numpy as np
import pyarrow as pa
import pytest

import datasets
from datasets.music import NOTES
from datasets.synthetic.chorales import CHORDS, FOLLOW
from workflows.reporting import midi


def music(**options):
    return datasets.build("music", path="", **options)


def encode(pieces, **options):
    made = music(**options)
    made.fitted = {"classes": {}}
    table = pa.table({"notes": pieces, "__file": ["f"] * len(pieces), "__row": range(1, len(pieces) + 1)})
    bad = {}
    columns, _ = made.encode_input(table, list(range(len(pieces))), bad)
    return columns, bad


def test_a_piece_is_a_roll_of_the_notes_that_sound():
    columns, bad = encode([[[60, 64], [], [21, 108]], [[60], [60]]])
    assert not bad and columns["length"].to_pylist() == [3, 2]
    roll = np.array(columns["values"][0].as_py()).reshape(3, NOTES)
    names = music().names({}, "notes")
    sounding = [[names[note] for note in np.flatnonzero(step)] for step in roll]
    assert sounding == [["60", "64"], [], ["21", "108"]]


@pytest.mark.parametrize(
    ("piece", "why"),
    [
        (None, "no value"),
        ([], "less than two steps"),
        ([[60]], "less than two steps"),
        ([[60], [109]], "step 2: 109.0 is no note from 21 to 108"),
        ([[20], [60]], "step 1: 20.0 is no note"),
        ([[60.5], [60]], "60.5 is no note"),
        ([[None], [60]], "None is no note"),
        ([[float("nan")], [60]], "nan is no note"),
        ([[float("inf")], [60]], "inf is no note"),
    ],
)
def test_what_is_no_music_is_set_aside(piece, why):
    columns, bad = encode([piece, [[60.0], [62.0]]])
    assert list(bad) == [0] and bad[0][0] == "notes" and why in bad[0][1]
    assert columns["length"].to_pylist() == [0, 2]


def test_names_of_notes_are_set_aside_with_their_piece():
    _, bad = encode([[["C4"], ["60"]], [["D4"], ["E4"]]])
    assert bad[0] == ("notes", "step 1: 'C4' is no note from 21 to 108") and len(bad) == 2


def test_a_column_of_something_else_is_an_error():
    with pytest.raises(ValueError, match=r"column 'notes' holds .*dataset\.notes"):
        encode(["c d e"])
    with pytest.raises(ValueError, match=r"dataset\.quarters=0"):
        music(quarters=0.0)


@pytest.mark.parametrize("quarters", [0.5, 0.25, 1 / 3])
def test_a_midi_file_holds_the_notes_and_how_long_they_sound(quarters):
    steps = [[60, 64], [60], [], [60, 67], [67]]
    file = mido.MidiFile(file=io.BytesIO(midi.write(steps, quarters=quarters)))
    at, sounding, events = 0, {}, []
    for message in file.tracks[0]:
        at += message.time
        if message.type == "note_on":
            sounding[message.note] = at
        elif message.type == "note_off":
            events.append((message.note, sounding.pop(message.note), at))
    ticks = [round(k * quarters * file.ticks_per_beat) for k in range(6)]
    assert sorted(events) == [
        (60, ticks[0], ticks[2]),
        (60, ticks[3], ticks[4]),
        (64, ticks[0], ticks[1]),
        (67, ticks[3], ticks[5]),
    ]
    assert not sounding


def test_the_best_loss_of_chorales_is_what_one_who_knows_the_rules_has():
    made = datasets.build("chorales", rows=100)
    pieces = made.generate(np.random.default_rng(0), 3000)["notes"]
    names = {notes: name for name, notes in CHORDS.items()}
    notes = set().union(*CHORDS.values())
    total, steps = 0.0, 0
    for piece in pieces:
        for number in range(1, len(piece)):
            steps += 1
            if number % 2:
                assert piece[number] == piece[number - 1]
                continue
            follow = FOLLOW[names[tuple(piece[number - 1])]]
            assert notes.issuperset(piece[number])
            for note in notes:
                p = sum(share for name, share in follow.items() if note in CHORDS[name])
                if 0 < p < 1:
                    total -= np.log(p if note in piece[number] else 1 - p)
                else:
                    assert (note in piece[number]) == round(p)
    assert total / steps == pytest.approx(made.best["loss"], rel=0.02)
    assert all(sum(follow.values()) == pytest.approx(1) for follow in FOLLOW.values())
    assert json.dumps(pieces[:5]) == json.dumps(made.generate(np.random.default_rng(0), 3000)["notes"][:5])
