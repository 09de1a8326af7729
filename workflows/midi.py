"""Music as standard MIDI files."""

from __future__ import annotations

import io
from collections.abc import Sequence

import mido

TICKS = 480         # of a quarter note
VELOCITY = 80       # how hard a key is struck, of 127


def write(steps: Sequence[Sequence[int]], *, quarters: float) -> bytes:
    """A MIDI file of one track, 120 quarter notes a minute, as MIDI has it.

    Args:
        steps: the notes that sound in each, 0 to 127; one that sounds in consecutive steps is held.
        quarters: quarter notes that a step lasts.
    """
    file = mido.MidiFile(type=0, ticks_per_beat=TICKS)
    track = mido.MidiTrack()
    file.tracks.append(track)
    sounding: set[int] = set()
    last = 0
    for number, step in enumerate([*steps, ()]):
        now, wanted = round(number * quarters * TICKS), set(step)
        for kind, notes in (("note_off", sounding - wanted), ("note_on", wanted - sounding)):
            for note in sorted(notes):
                track.append(mido.Message(kind, note=note, velocity=VELOCITY if kind == "note_on" else 0,
                                          time=now - last))
                last = now
        sounding = wanted
    out = io.BytesIO()
    file.save(file=out)
    return out.getvalue()
