"""Music as standard MIDI files."""

from __future__ import annotations

import io
from collections.abc import Sequence

import mido

TICKS = 480  # of a quarter note
VELOCITY = 80  # how hard a key is struck, of 127


def write(steps: Sequence[Sequence[int]], *, quarters: float) -> bytes:
    """A MIDI file with one track at MIDI's default tempo, 120 quarter notes a minute.

    Args:
        steps: the notes that sound in each step, 0 to 127; one that sounds in consecutive steps is held.
        quarters: duration of a step in quarter notes.
    """
    file = mido.MidiFile(type=0, ticks_per_beat=TICKS)
    track = mido.MidiTrack()
    file.tracks.append(track)
    sounding: set[int] = set()
    last = 0
    for number, step in enumerate([*steps, ()]):
        now, notes_of_step = round(number * quarters * TICKS), set(step)
        for kind, notes in (("note_off", sounding - notes_of_step), ("note_on", notes_of_step - sounding)):
            for note in sorted(notes):
                track.append(
                    mido.Message(kind, note=note, velocity=VELOCITY if kind == "note_on" else 0, time=now - last)
                )
                last = now
        sounding = notes_of_step
    out = io.BytesIO()
    file.save(file=out)
    return out.getvalue()
