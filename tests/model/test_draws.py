"""Philox against its published vectors and an integer reference; draws by distribution and by independence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omniges.model.draws import Draws, Purpose, normal, normals, philox, uniform, words

MASK = 0xFFFF_FFFF
WORD = st.integers(0, MASK)

# Known answers for philox4x32 with 10 rounds, published with Random123 (Salmon et al. 2011): counter, key, result.
PUBLISHED = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def reference(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 in Python's unbounded integers, from the paper."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 1 << 32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return tuple(c)


def run_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    return tuple(int(word) for word in philox([torch.tensor([word]) for word in counter], key))


class TestPhilox:
    @pytest.mark.parametrize(("counter", "key", "result"), PUBLISHED)
    def test_the_published_known_answers(self, counter, key, result):
        assert run_philox(counter, key) == result
        assert reference(counter, key) == result

    @given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
    def test_it_is_integer_arithmetic_at_every_word(self, counter, key):
        assert run_philox(counter, key) == reference(counter, key)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
    def test_an_accelerator_gives_the_same_words(self):
        positions = torch.arange(2**40, 2**40 + 50)
        on_gpu = words(7, positions.cuda(), Purpose.TASK, 1001).cpu()
        torch.testing.assert_close(on_gpu, words(7, positions, Purpose.TASK, 1001), rtol=0, atol=0)


class TestWords:
    @given(st.integers(0, 2**64 - 1), st.integers(0, 2**62), st.sampled_from(Purpose), st.integers(1, 40))
    def test_counter_and_key_are_laid_out_as_documented(self, seed, position, purpose, count):
        found = words(seed, torch.tensor([position]), purpose, count)
        blocks = -(-count // 4)
        assert found.shape == (1, 4, blocks)
        counter = (blocks - 1, int(purpose), position & MASK, position >> 32)
        assert tuple(found[0, :, -1].tolist()) == reference(counter, (seed & MASK, seed >> 32))

    def test_chunks_do_not_show(self, monkeypatch):
        positions = torch.arange(7)
        whole = words(3, positions, Purpose.NOISE_AUDIO, 99)
        for blocks in (1, 10, 24, 25, 26, 1000):
            monkeypatch.setattr("omniges.model.draws._CACHED_BLOCKS", blocks)
            assert torch.equal(words(3, positions, Purpose.NOISE_AUDIO, 99), whole)

    def test_no_two_purposes_seeds_or_positions_share_numbers(self):
        seen = [words(seed, torch.arange(3), p, 64).flatten(1) for seed in (0, 1) for p in Purpose]
        numbers = torch.cat(seen).flatten()
        assert len(numbers.unique()) >= len(numbers) - 2  # 4 224 words of 2³²: a coincidence is a chance of 0.2 %


class TestDraws:
    @given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**50), min_size=1, max_size=9), st.integers(1, 70))
    @settings(deadline=None, max_examples=50)
    def test_a_sample_draws_the_same_alone_and_in_any_batch_to_the_last_bit(self, seed, positions, count):
        for draw in (uniform, normal):
            batch = draw(seed, torch.tensor(positions), Purpose.NOISE_TEXT, count)
            for k, position in enumerate(positions):
                alone = draw(seed, torch.tensor([position]), Purpose.NOISE_TEXT, count)
                assert torch.equal(batch[k], alone[0])

    @pytest.mark.parametrize("threads", [1, 2])
    def test_a_large_draw_is_the_same_in_any_batch_and_with_any_number_of_threads(self, threads):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            batch = normal(1, torch.arange(10, 14), Purpose.NOISE_GESTURE, 79_681)
            torch.set_num_threads(1)
            alone = normal(1, torch.tensor([12]), Purpose.NOISE_GESTURE, 79_681)
        finally:
            torch.set_num_threads(before)
        assert torch.equal(batch[2], alone[0])

    def test_several_purposes_at_once_draw_the_numbers_of_each_alone(self):
        places = torch.arange(5) * 2**33
        wanted = [Draws(places, 32, 1001), Draws(places[:0], 33, 7), Draws(places[2:], 34, 3)]
        for one, found in zip(wanted, normals(2**63, wanted), strict=True):
            assert torch.equal(found, normal(2**63, one.positions, one.purpose, one.count))
            assert found.shape == (len(one.positions), one.count)

    def test_uniform_draws_are_uniform_and_inside_the_open_interval(self):
        draws = uniform(5, torch.arange(400), Purpose.TASK, 1000).double().numpy()
        assert draws.dtype == np.float64
        assert 0 < draws.min() <= draws.max() < 1
        assert scipy.stats.kstest(draws.ravel(), "uniform").pvalue > 1e-3
        assert scipy.stats.kstest(draws[:, 0], "uniform").pvalue > 1e-3  # across positions too

    def test_the_extreme_words_stay_inside_the_open_interval(self, monkeypatch):
        extremes = tuple(torch.tensor([word]) for word in (0, MASK, 0, MASK))
        monkeypatch.setattr("omniges.model.draws.philox", lambda *_: extremes)
        draws = uniform(0, torch.tensor([0]), Purpose.TASK, 4)
        assert draws.tolist() == [[2.0**-24, 1 - 2.0**-24] * 2]
        largest = normal(0, torch.tensor([0]), Purpose.TASK, 4).abs().max()
        assert largest <= math.sqrt(2 * math.log(2.0**24)) + 1e-5

    def test_normal_draws_are_normal_and_uncorrelated(self):
        draws = normal(5, torch.arange(400), Purpose.NOISE_AUDIO, 1000).double().numpy()
        assert scipy.stats.kstest(draws.ravel(), "norm").pvalue > 1e-3
        assert scipy.stats.kstest(draws[:, 3], "norm").pvalue > 1e-3
        for left, right in ((draws[:, :500], draws[:, 500:]), (draws[:-1], draws[1:]), (draws[:, :-1], draws[:, 1:])):
            assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 5 / math.sqrt(left.size)

    def test_normal_is_box_muller_of_the_words_in_double_precision(self):
        bits = words(9, torch.arange(20), Purpose.NOISE_TEXT, 400).double().numpy()
        unit = (np.floor(bits / 512) + 0.5) / 2**23
        radius, angle = np.sqrt(-2 * np.log(unit[:, 0::2])), 2 * np.pi * unit[:, 1::2]
        expected = np.stack([np.cos(angle) * radius, np.sin(angle) * radius], axis=1).reshape(20, -1)
        got = normal(9, torch.arange(20), Purpose.NOISE_TEXT, 400).double().numpy()
        np.testing.assert_allclose(got, expected, atol=5e-6)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own parts
def test_compiled_code_draws_the_same_numbers() -> None:
    """Needs a C++ compiler."""

    def mixed(positions: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
        drawn = normals(7, [Draws(positions, 32, 7470), Draws(positions, 33, 96), Draws(positions, 34, 3840)])
        return [torch.lerp(torch.ones_like(x), x, share[:, None]) for x in drawn]

    given = torch.tensor([0, 5, 2**40 + 3]), torch.tensor([0.0, 0.5, 1.0])
    for found, expected in zip(torch.compile(mixed, fullgraph=True)(*given), mixed(*given), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
