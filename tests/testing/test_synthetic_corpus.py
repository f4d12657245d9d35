"""The sample corpus: files as BEAT2 has them, words that can be read from motion alone and from sound alone.

The reading is template matching written here, with numpy and soundfile; it shares no code with the product
but the signatures of the words.
"""

import csv
import hashlib
import io
import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from omniges.errors import ExitCode, UsageFault
from omniges.features.audio import mel_filterbank
from omniges.features.gesture import LAYOUT
from omniges.formats.npz import decode_motion
from omniges.formats.semantic import decode_semantic
from omniges.formats.textgrid import decode_words
from omniges.pipeline.labels import parse_split_list, parse_stem, speaker_of_folder
from omniges.testing.settings import MAX_WORDS, CorpusSettings
from omniges.testing.signatures import word_signature
from omniges.testing.synthetic_corpus import write_sample_corpus

GOLDEN = {
    "sem": "ef3f9820d1b8070f",
    "smplxflame_30": "ab2713d5873704f9",
    "textgrid": "55e92d8444a42e1f",
    "wave16k": "a542bf8e0773af9c",
}
SETTINGS = CorpusSettings(clips=12, seconds=24.0, words=12, speakers=3, seed=5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "new"
    return write_sample_corpus(folder, SETTINGS)


@pytest.fixture(scope="module")
def clips(corpus):
    """Stem to (poses, expressions, trans, samples, words)."""
    base = corpus.root / "beat_synthetic_v2.0.0"
    out = {}
    for path in sorted((base / "smplxflame_30").iterdir()):
        with np.load(path, allow_pickle=False) as npz:
            motion = {key: npz[key] for key in npz.files}
        samples, rate = soundfile.read(base / "wave16k" / f"{path.stem}.wav", dtype="float32")
        assert rate == 16_000
        words = decode_words((base / "textgrid" / f"{path.stem}.TextGrid").read_bytes())
        out[path.stem] = (motion, samples, words)
    return out


def _digest(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _middle(word):
    return round((word.start + word.end) / 2 * 30)


def _words_of(clips):
    return [(stem, word) for stem, (_, _, tier) in clips.items() for word in tier.words]


# --- files --------------------------------------------------------------------------------------------------


def test_official_layout(corpus, clips):
    names = set(_digest(corpus.root))
    stems = [f"{1 + k % 3}_synthetic{'abc'[k % 3]}_0_{k // 3 + 1}_{k // 3 + 1}" for k in range(12)]
    base = "beat_synthetic_v2.0.0"
    expected = {f"{base}/train_test_split.csv", "README.txt"}
    for stem in stems:
        expected |= {f"{base}/wave16k/{stem}.wav", f"{base}/smplxflame_30/{stem}.npz"}
        expected |= {f"{base}/textgrid/{stem}.TextGrid", f"{base}/sem/{stem}.txt"}
    assert names == expected
    assert set(clips) == set(stems)
    assert (corpus.clips, corpus.seconds, corpus.speakers) == (12, 288.0, 3)
    assert corpus.words == len(_words_of(clips))


def test_it_says_that_it_is_synthetic(corpus):
    assert (corpus.root / "README.txt").read_text().startswith("SYNTHETIC")
    for name in _digest(corpus.root):
        assert "synthetic" in name or name == "README.txt"


def test_stems_follow_the_grammar(clips):
    for stem in clips:
        fields = parse_stem(stem)
        assert fields.known
        assert (fields.language, fields.scenario) == ("english", "speech")
        assert re.fullmatch("synthetic[a-z]", fields.speaker)


def test_seed_layout_has_folders_per_speaker(tmp_path):
    settings = CorpusSettings(clips=4, seconds=3, layout="seed", audio="float32")
    write_sample_corpus(tmp_path, settings)
    expected = {"README.txt", "train_test_split.csv"}
    for folder in ("1_synthetica", "2_syntheticb"):
        assert speaker_of_folder(folder) == (int(folder[0]), folder[2:])
        for k in (1, 2):
            name = f"{folder}_0_{k}_{k}"
            expected |= {f"wave16k/{folder}/{name}.wav", f"word/{folder}/{name}.TextGrid"}
            expected.add(f"speakers_1234_smplx_neutral_npz/{folder}/{name}.npz")
    assert set(_digest(tmp_path)) == expected
    info = soundfile.info(tmp_path / "wave16k/1_synthetica/1_synthetica_0_1_1.wav")
    assert (info.subtype, info.channels, info.samplerate) == ("FLOAT", 1, 16_000)


def test_motion_is_what_beat2_has(corpus, clips):
    for stem, (motion, _, _) in clips.items():
        shapes = {key: motion[key].shape for key in ("poses", "expressions", "trans", "betas")}
        assert shapes == {"poses": (720, 165), "expressions": (720, 100), "trans": (720, 3), "betas": (300,)}
        assert (str(motion["model"]), str(motion["gender"])) == ("smplx2020", "neutral")
        assert int(motion["mocap_frame_rate"]) == 30
        assert np.isfinite(motion["poses"]).all()
        assert (motion["betas"] != 0).all()
        assert 1.2 < motion["trans"][:, 1].min() < motion["trans"][:, 1].max() < 1.4
        angles = np.linalg.norm(motion["poses"].reshape(720, 55, 3), axis=2)
        assert angles.max() < np.pi
        assert angles[:, 0].max() < 0.5  # upright
        assert 0.01 < np.abs(motion["poses"][:, 66:75]).max() < 0.2  # jaw and eyes
        steps = np.linalg.norm(np.diff(motion["trans"], axis=0), axis=1)
        assert 0 < steps.max() < 0.02
        path = corpus.root / "beat_synthetic_v2.0.0/smplxflame_30" / f"{stem}.npz"
        assert decode_motion(path.read_bytes()).notes == ()


def test_audio_is_clean_and_sometimes_longer_than_motion(clips):
    surplus = []
    for _, samples, tier in clips.values():
        assert 0.4 < np.abs(samples).max() < 0.9
        assert len(samples) / 16_000 == tier.xmax_s
        surplus.append(tier.xmax_s - 24.0)
        silent = np.ones(len(samples), dtype=bool)
        for word in tier.words:
            silent[round(word.start * 16_000) : round(word.end * 16_000)] = False
        level = 20 * np.log10(np.sqrt(np.mean(samples[silent].astype(np.float64) ** 2)))
        assert -57 < level < -53
    assert min(surplus) == 0
    assert 0.0 < max(surplus) <= 0.5


def test_words_are_timed_as_promised(clips):
    for _, _, tier in clips.values():
        times = np.array([(w.start, w.end) for w in tier.words])
        np.testing.assert_allclose(times * 100, np.rint(times * 100), atol=1e-9)
        lengths, pauses = times[:, 1] - times[:, 0], times[1:, 0] - times[:-1, 1]
        assert 0.25 - 1e-9 < lengths.min() < lengths.max() < 0.7 + 1e-9
        assert 0.05 - 1e-9 < pauses.min() < pauses.max() < 0.5 + 1e-9
        assert 23.0 < times[-1, 1] < 24.0
        words = [w.word for w in tier.words]
        assert all(a != b for a, b in itertools.pairwise(words))


def test_phones_divide_their_words(corpus, clips):
    for stem, (_, _, tier) in clips.items():
        data = (corpus.root / f"beat_synthetic_v2.0.0/textgrid/{stem}.TextGrid").read_bytes()
        phones = decode_words(data, tier="phones").words
        for word in tier.words:
            inside = [p for p in phones if word.start <= p.start < word.end]
            assert 2 <= len(inside) <= 4
            assert (inside[0].start, inside[-1].end) == (word.start, word.end)
            assert "".join(p.word for p in inside).lower() == word.word
            assert all(a.end == b.start for a, b in itertools.pairwise(inside))


def test_semantic_files_parse(corpus, clips):
    for stem, (_, _, tier) in clips.items():
        spans = decode_semantic((corpus.root / f"beat_synthetic_v2.0.0/sem/{stem}.txt").read_bytes())
        assert [s.keywords for s in spans] == [w.word for w in tier.words]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clips", "speakers", "test", "val"),
    [(1, 1, 0, 0), (2, 2, 0, 0), (3, 1, 1, 1), (3, 3, 1, 1), (12, 2, 2, 2), (60, 2, 6, 6), (60, 5, 6, 6)],
)
def test_splits(tmp_path, clips, speakers, test, val):
    settings = CorpusSettings(clips=clips, speakers=speakers, seconds=2)
    write_sample_corpus(tmp_path, settings)
    data = (tmp_path / "beat_synthetic_v2.0.0/train_test_split.csv").read_bytes()
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    found = parse_split_list(data, "csv")
    assert (len(rows), found.faulty, found.findings) == (clips, {}, ())
    by_split = {s: [i for i, t in found.splits.items() if t == s] for s in ("train", "val", "test")}
    assert [len(by_split[s]) for s in ("test", "val", "train")] == [test, val, clips - test - val]
    if 6 * speakers <= clips:
        assert all(len({stem[0] for stem in stems}) == speakers for stems in by_split.values())
    assert {row["id"] for row in rows} == {p.stem for p in (tmp_path / "beat_synthetic_v2.0.0/wave16k").iterdir()}


# --- determinism --------------------------------------------------------------------------------------------


def test_same_settings_same_bytes_other_seed_other_bytes(tmp_path):
    settings = CorpusSettings(clips=3, seconds=4, speakers=1)
    done = []
    write_sample_corpus(tmp_path / "a", settings, lambda k, n: done.append((k, n)))
    write_sample_corpus(tmp_path / "b", replace(settings, seconds=4.0))
    write_sample_corpus(tmp_path / "c", replace(settings, seed=1))
    a, b, c = (_digest(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert {name for name in a if a[name] == c[name]} == {"beat_synthetic_v2.0.0/train_test_split.csv"}
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_bytes_do_not_depend_on_the_machine(tmp_path):
    """Golden values: another CPU, numpy or C library must give the same motion and sound."""
    write_sample_corpus(tmp_path, CorpusSettings(clips=1, seconds=3, speakers=1, seed=7))
    digests = _digest(tmp_path / "beat_synthetic_v2.0.0")
    assert {name.partition("/")[0]: digest[:16] for name, digest in digests.items() if "/" in name} == GOLDEN


def test_a_clip_does_not_depend_on_how_many_there_are(tmp_path):
    for name, clips in (("a", 2), ("b", 4)):
        write_sample_corpus(tmp_path / name, CorpusSettings(clips=clips, seconds=3))
    a, b = _digest(tmp_path / "a"), _digest(tmp_path / "b")
    shared = [name for name in a if "_0_1_1" in name]
    assert shared
    assert all(a[name] == b[name] for name in shared)


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("clips", {"clips": 0}),
        ("clips", {"clips": 2, "speakers": 3}),
        ("seconds", {"seconds": 1.0}),
        ("seconds", {"seconds": float("nan")}),
        ("words", {"words": 1}),
        ("words", {"words": MAX_WORDS + 1}),
        ("speakers", {"speakers": 0}),
        ("speakers", {"speakers": 27, "clips": 27}),
        ("seed", {"seed": -1}),
        ("layout", {"layout": "flat"}),
        ("audio", {"audio": "mp3"}),
    ],
)
def test_settings_are_checked(name, values):
    with pytest.raises(UsageFault, match=f"^{name} .*expected") as caught:
        CorpusSettings(**values)
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    for target in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UsageFault, match="new or empty folder"):
            write_sample_corpus(target, CorpusSettings(clips=2, seconds=2))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


# --- signatures ---------------------------------------------------------------------------------------------


def test_signatures_are_distinct_and_prefixes():
    signatures = [word_signature(k, 3) for k in range(60)]
    assert len({s.word for s in signatures}) == 60
    everything = [word_signature(k, 3) for k in range(MAX_WORDS)]
    assert len({s.word for s in everything}) == len({tuple(s.tones_hz) for s in everything}) == MAX_WORDS
    np.testing.assert_array_equal(everything[59].rotations, signatures[59].rotations)
    tones = {int(tone) for s in signatures for tone in s.tones_hz}
    bands = sorted(mel_filterbank()[:, round(tone * 1024 / 16_000)].argmax() for tone in tones)
    assert min(np.diff(bands)) >= 2
    assert 150 <= min(tones) < max(tones) <= 4000
    for a in range(49):
        for b in range(a):
            shared = set(signatures[a].tones_hz) & set(signatures[b].tones_hz)
            assert len(shared) <= (0 if a // 7 == b // 7 else 1)
    assert not signatures[0].rotations.flags.writeable
    with pytest.raises(ValueError, match="word index"):
        word_signature(MAX_WORDS, 3)


@pytest.mark.parametrize("seed", range(4))
def test_poses_of_words_are_clear_and_far_apart(seed):
    poses = np.array([word_signature(k, seed).rotations for k in range(12)])
    still = [0, 1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 22, 23, 24]  # pelvis, legs, collars, jaw, eyes
    assert not poses.reshape(12, 55, 3)[:, still].any()
    angles = np.linalg.norm(poses.reshape(12, 55, 3), axis=2)
    assert (angles[:, [16, 17, 18, 19, 20, 21]] > 0.3).all()
    assert angles.max() < 1.0
    arms = poses.reshape(12, 55, 3)[:, [3, 6, 9, 12, 15, 16, 17, 18, 19, 20, 21]].reshape(12, -1)
    apart = np.linalg.norm(arms[:, None] - arms[None], axis=2)[np.triu_indices(12, 1)]
    assert apart.min() > 1.5  # radians, arms and trunk alone


# --- each modality tells the words --------------------------------------------------------------------------


def test_words_can_be_read_from_motion_alone(clips):
    templates = [word_signature(k, SETTINGS.seed) for k in range(12)]
    stacked = np.array([np.concatenate([t.rotations, 0.1 * t.expression]) for t in templates])
    right = total = 0
    for motion, _, tier in clips.values():
        values = np.concatenate([motion["poses"], 0.1 * motion["expressions"]], axis=1)
        rest = np.median(values, axis=0)
        for word in tier.words:
            seen = values[_middle(word)] - rest
            guess = templates[np.linalg.norm(seen - stacked, axis=1).argmin()].word
            right += guess == word.word
            total += 1
    assert total > 300
    assert right >= 0.99 * total


def test_words_can_be_read_from_audio_alone(clips):
    templates = [word_signature(k, SETTINGS.seed) for k in range(12)]
    right = total = 0
    for _, samples, tier in clips.values():
        for word in tier.words:
            inside = slice(round(word.start * 16_000) + 400, round(word.end * 16_000) - 400)
            piece = samples[inside].astype(np.float64)
            spectrum = np.abs(np.fft.rfft(piece * np.hanning(len(piece)), 16_000))  # 1 Hz a bin
            found = [
                sum(np.log(spectrum[int(0.965 * tone) : int(1.035 * tone) + 2].max()) for tone in t.tones_hz)
                for t in templates
            ]
            right += templates[int(np.argmax(found))].word == word.word
            total += 1
    assert right >= 0.99 * total


def test_idle_motion_tells_nothing(clips):
    """Legs, pelvis and root do not know when something is said (its timing taken from the sound)."""
    speaking, rest = [], []
    nearest = np.arange(720) * 1600 // 3
    for motion, samples, _ in clips.values():
        loud = np.abs(samples[nearest[:, None] + np.arange(160)]).max(axis=1)
        speaking.append(loud > 0.05)
        joints = motion["poses"].reshape(720, 55, 3)[:, list(LAYOUT.lower_joints)].reshape(720, -1)
        steps = np.gradient(motion["trans"], axis=0)
        rest.append(np.concatenate([joints, steps], axis=1))
        rest[-1] -= rest[-1].mean(axis=0)
    speaking, rest = np.concatenate(speaking).astype(float), np.concatenate(rest)
    correlation = [np.corrcoef(speaking, column)[0, 1] for column in rest.T]
    assert np.abs(correlation).max() < 0.15


def test_idle_part_of_the_arms_does_not_know_the_word(clips):
    """Mid-word poses less the word's offset: class means of the other clips name words by chance only."""
    signatures = {s.word: s for s in (word_signature(k, SETTINGS.seed) for k in range(12))}
    rows, labels, owners = [], [], []
    for owner, (motion, _, tier) in enumerate(clips.values()):
        poses = motion["poses"]
        offsets = [poses[_middle(word)] - signatures[word.word].rotations for word in tier.words]
        rows.append(np.array(offsets) - np.mean(offsets, axis=0))
        labels += [word.word for word in tier.words]
        owners += [owner] * len(offsets)
    rows, labels, owners = np.concatenate(rows), np.array(labels), np.array(owners)
    assert np.abs(rows[:, 48:66]).max() < 0.3  # the full offset is there at mid-word: only idle motion is left
    right = 0
    for owner in set(owners):
        train = owners != owner
        means = np.array([rows[train & (labels == word)].mean(axis=0) for word in signatures])
        nearest = np.linalg.norm(rows[~train][:, None] - means[None], axis=2).argmin(axis=1)
        right += (np.array(list(signatures))[nearest] == labels[~train]).sum()
    assert right / len(labels) < 0.2  # chance is 0.083


def test_signatures_stand_out_from_idle_motion_for_every_speaker(clips):
    for motion, _, tier in clips.values():
        arms = motion["poses"][:, 48:66].astype(np.float64)
        frames = np.arange(720) / 30
        silent = np.ones(720, dtype=bool)
        for word in tier.words:
            silent &= ~((frames > word.start) & (frames < word.end))
        assert arms[~silent].std(axis=0).mean() > 2.5 * arms[silent].std(axis=0).mean()


class TestEmotions:
    def test_stems_say_them_in_turns(self, tmp_path):
        write_sample_corpus(tmp_path / "c", CorpusSettings(clips=32, seconds=2.0, speakers=2, emotions=8, seed=1))
        stems = {path.stem for path in (tmp_path / "c").rglob("*.npz")}
        assert len(stems) == 32
        found = [parse_stem(stem).emotion for stem in sorted(stems)]
        names = ("neutral", "happiness", "anger", "sadness", "contempt", "surprise", "fear", "disgust")
        assert {name: found.count(name) for name in names} == dict.fromkeys(names, 4)

    def test_only_the_idle_pose_shows_them(self, tmp_path):
        """Words and sound are those of a corpus of one emotion; poses differ by a constant of the emotion."""
        moody, plain = tmp_path / "moody", tmp_path / "plain"
        for folder, emotions in ((moody, 8), (plain, 1)):
            write_sample_corpus(folder, CorpusSettings(clips=8, seconds=2.0, speakers=1, emotions=emotions, seed=1))
        seen = []
        for path in sorted(plain.rglob("*.npz")):
            number = int(path.stem.split("_")[-1])
            (other,) = moody.rglob(f"*_{number}.npz")
            for kind, ending in (("wave16k", "wav"), ("textgrid", "TextGrid"), ("sem", "txt")):
                own, its = (p.parents[1] / kind / f"{p.stem}.{ending}" for p in (path, other))
                assert own.read_bytes() == its.read_bytes()
            offsets = decode_motion(other.read_bytes()).poses - decode_motion(path.read_bytes()).poses
            assert np.ptp(offsets, axis=0).max() < 1e-5
            seen.append(offsets.mean(axis=0))
        assert not seen[0].any()
        assert min(np.abs(a - b).max() for a, b in itertools.combinations(seen, 2)) > 0.19
