"""Progress of a training, as a checkpoint holds it."""

import json

from workflows.training.progress import Progress


def test_progress_is_the_same_after_a_checkpoint_which_calls_the_position_place():
    progress = Progress(step=7, epoch=2, position=(1, 3), rows=448, history=[{"epoch": 1.0}])
    plain = json.loads(json.dumps(progress.plain()))
    assert plain["place"] == [1, 3] and "position" not in plain
    assert Progress.from_plain(plain) == progress
