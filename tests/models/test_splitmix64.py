"""splitmix64 against its authors' numbers and against plain integers; golden numbers keep stored plans valid."""

import numpy as np
import pytest

from models import splitmix64

MODULO = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15
KEYS = [0, 1, -1, 12345, -(1 << 63), (1 << 63) - 1, 0x0123456789ABCDEF]


def output(x):
    """The generator's output function in plain integers, as its authors print it."""
    x %= MODULO
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % MODULO
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % MODULO
    return x ^ (x >> 31)


def test_the_generator_gives_the_numbers_of_its_authors():
    # seeded with 1234567 (Vigna's splitmix64.c): the state grows by GOLDEN before each number
    states = np.array([1234567], np.uint64) + np.arange(1, 4, dtype=np.uint64) * splitmix64.GOLDEN
    assert splitmix64.output(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_mix_does_not_change():
    x = np.array([0, 1, 2, MODULO - 1, 1 << 63, 12345678901234567890], np.uint64)
    assert splitmix64.mix(x).tolist() == [output((number + 1) * GOLDEN) for number in x.tolist()]
    assert splitmix64.mix(x[:3]).tolist() == [16294208416658607535, 7960286522194355700, 487617019471545679]


def test_one_seed_of_several_numbers_does_not_change():
    numbers = [(0, 0, 0), (0,), (1, 2, 3), (123456, 999, 7), (1 << 62, 5, 1), (MODULO - 1, 3, 3)]
    assert [splitmix64.seed(*some) for some in numbers] == [
        1279368494785126216,
        8147104208329303767,
        3851293329796251419,
        1199864459494680769,
        855472190406392436,
        641121075461769284,
    ]


@pytest.mark.parametrize("stream", [0, 3, 1000])
def test_uniform_numbers_are_those_of_plain_integers_bit_for_bit(stream):
    expected = []
    for key in KEYS:
        state = output(key + (stream + 1) * GOLDEN)
        expected.append([(output(state + (i + 1) * GOLDEN) >> 40) / (1 << 24) for i in range(5)])
    numbers = splitmix64.uniform(np.array(KEYS, np.int64), 5, stream)
    assert numbers.dtype == np.float32
    assert numbers.tolist() == expected
