"""TextGrid: every word of the file comes out to the letter and at its times, or the reason is named."""

from __future__ import annotations

import contextlib
import csv
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_builders import CORPUS, SAMPLE, needs_corpus, needs_sample, textgrid

from omniges.errors import RecordingFault
from omniges.formats.textgrid import (
    MAX_BYTES,
    WordInterval,
    decode_words,
    encode_words,
    is_silence,
    is_textgrid,
    is_unknown,
    is_word,
)

HEADER = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n'
TWO = [("0", "1", "one"), ("1", "2", "two")]


def fault_of(data: bytes | str, tier: str | None = None) -> RecordingFault:
    with pytest.raises(RecordingFault) as caught:
        decode_words(data.encode() if isinstance(data, str) else data, tier)
    return caught.value


def code_of(data: bytes | str, tier: str | None = None) -> str:
    return fault_of(data, tier).problem.code


def rows_of(data: bytes | str, tier: str | None = None) -> list[tuple[float, float, str]]:
    got = decode_words(data.encode() if isinstance(data, str) else data, tier)
    return [(item.start, item.end, item.word) for item in got.words]


def independent_reading(data: bytes) -> list[tuple[str, str, list[tuple[float, ...]], list[str]]]:
    """Read a TextGrid as Praat defines it: free-standing numbers and quoted strings, the rest is comment."""
    text = data.decode("utf-16" if data[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig").replace("\r\n", "\n")
    tokens = re.findall(r'"(?:[^"]|"")*"|(?:(?<=\s)|(?<==))-?\d+(?:\.\d*)?(?=\s)', text)[2:]
    queue = [t[1:-1].replace('""', '"') if t[0] == '"' else float(t) for t in tokens]
    tiers = []
    position = 3
    while position < len(queue):
        kind, name, _, _, count = queue[position : position + 5]
        position += 5
        width = 3 if kind == "IntervalTier" else 2
        rows = [queue[position + k * width : position + (k + 1) * width] for k in range(int(count))]
        position += width * int(count)
        tiers.append((kind, name, [tuple(row[:-1]) for row in rows], [row[-1] for row in rows]))
    assert len(tiers) == queue[2]
    return tiers


def corpus_files() -> list[str]:
    if not CORPUS.is_dir():
        return []
    with (CORPUS / "index.csv").open(newline="") as file:
        return [row["file"] for row in csv.DictReader(file)]


@needs_corpus
@pytest.mark.parametrize("file", corpus_files())
def test_every_interval_tier_of_the_corpus(file):
    data = (CORPUS / file).read_bytes()
    with (CORPUS / "index.csv").open(newline="") as index:
        row = next(row for row in csv.DictReader(index) if row["file"] == file)
    tiers = independent_reading(data)
    assert [int(entry.rsplit(":", 1)[1]) for entry in row["tiers_as_read_by_praatio"].split("; ")] == [
        len(labels) for _, _, _, labels in tiers
    ]
    seen = set()
    for kind, name, times, labels in tiers:
        expected = (
            [
                (start, end, " ".join(part.strip() for part in label.split("\n")))
                for (start, end), label in zip(times, labels, strict=True)
                if label.strip()
            ]
            if kind == "IntervalTier"
            else []
        )
        if name in seen:
            continue
        seen.add(name)
        if kind != "IntervalTier":
            assert code_of(data, name) == "textgrid-no-word-tier"
        elif not expected:
            assert code_of(data, name) == "textgrid-no-words"
        else:
            got = decode_words(data, name)
            assert [(w.start, w.end, w.word) for w in got.words] == expected
            assert got.xmax_s == float(row["xmax"])
            assert got.tier_name == name


@needs_corpus
@pytest.mark.parametrize("file", corpus_files())
def test_the_default_tier_of_the_corpus(file):
    data = (CORPUS / file).read_bytes()
    names = [name for kind, name, _, _ in independent_reading(data) if kind == "IntervalTier"]
    default = next((name for name in names if name.strip('"') in {"word", "words"}), None)
    if default is None:
        problem = fault_of(data).problem
        assert problem.code == "textgrid-no-word-tier"
        assert all(name in problem.found for name in names)
    elif file == "empty_textgrid.TextGrid":
        assert code_of(data) == "textgrid-no-words"
    else:
        assert decode_words(data) == decode_words(data, default)
        assert len(decode_words(data).words) == 4


@needs_corpus
def test_one_content_in_two_forms_reads_equally():
    def words(name: str, tier: str) -> object:
        return decode_words((CORPUS / f"{name}.TextGrid").read_bytes(), tier).words

    assert words("mary", "word") == words("mary_longfile", "word")
    for tier in ("bob", "mary", "sarah"):
        assert words("textgrid_to_merge", tier) == words("textgrid_to_merge_longfile", tier)
    assert words("bobby_words_with_newlines", "word") == words("bobby_words_with_newlines_longfile_elan", "word")


@needs_sample
def test_the_sample():
    data = (SAMPLE / "textgrid" / "2_scott_0_1_1.TextGrid").read_bytes()
    got = decode_words(data)
    assert len(got.words) == 196
    assert got.words[:2] == (WordInterval("the", 1.39, 1.52), WordInterval("first", 1.52, 1.78))
    assert got.xmax_s == 1_025_558 / 16_000
    assert decode_words(encode_words(got.words, got.xmax_s)).words == got.words


WORDS = (
    st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1)
    | st.sampled_from(['"', '""', "item [1]:", "intervals [2]:", '"IntervalTier"', "IntervalTier", 'text = "x"'])
    | st.sampled_from(["ooTextFile short", "xmin = 3", "-5", "1e5", "nan", "!", "<exists>", "item[", "size = 0"])
).map(lambda text: text.strip() or "x")


@pytest.mark.slow
@given(
    st.lists(WORDS.filter(is_word), min_size=1, max_size=6),
    st.lists(st.floats(0, 1e6), min_size=13, max_size=13, unique=True),
    st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_round_trip_of_any_words_and_times(labels, times, touching):
    times = sorted(times)
    step = 1 if touching else 2
    pairs = [(times[step * k], times[step * k + 1]) for k in range(len(labels))]
    words = tuple(WordInterval(w, start, end) for w, (start, end) in zip(labels, pairs, strict=True))
    data = encode_words(words, times[-1], phones=words)
    assert data == encode_words(list(words), times[-1], phones=words)
    got = decode_words(data)
    assert got.words == words
    assert (got.xmax_s, got.tier_name, got.notes) == (times[-1], "words", ())
    assert decode_words(data, "phones").words == words
    as_praat_reads = independent_reading(data)[0]
    assert [label for label in as_praat_reads[3] if label] == labels
    assert as_praat_reads[2][0][0] == 0.0
    assert as_praat_reads[2][-1][1] == times[-1]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "bom-be"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("short", [False, True])
def test_letters_of_every_script_are_kept(codec, newline, short):
    labels = ["你好", "ありがとう", "감사합니다", "한글", "مرحبا", "שָׁלוֹם", "👩‍🚀", "e\u0301", "é", "L’été", "Ⅻ"]
    rows = [(str(k), str(k + 1), label) for k, label in enumerate(labels)]
    text = textgrid(("words", rows), xmax="20", short=short).replace("\n", newline)
    data = b"\xfe\xff" + text.encode("utf-16-be") if codec == "bom-be" else text.encode(codec)
    assert [word for _, _, word in rows_of(data)] == labels


def test_line_breaks_inside_become_one_space_and_quotes_are_undone():
    rows = [("0", "1", ' a\n  b\r\n\n"" c\td\u2028e ')]
    for short in (False, True):
        assert rows_of(textgrid(("words", rows), short=short)) == [(0.0, 1.0, 'a b " c\td e')]


BLANKS = ["", "  "]
SILENCES = ["sil", "SIL", "sp", "spn", "pau", "#", "<sil>", "<SP>", "<eps>", "[SIL]", "<p:>", "{SL}", "<silence>"]
NOISES = [
    "[noise]",
    "...",
    "-",
    "\u200b",
    "<nospeech>",
    "&=laughs",
    "{LG}",
    "<laugh>",
    "</s>",
    "<s>",
    "[Laughter]",
    "!SIL",
    "h#",
]
UNKNOWN = ["<unk>", "<UNK>", "[unk]", "<oov>", "<SPOKEN_NOISE>"]
WORDS_LIKE_THEM = [
    "silence",
    "&",
    "%",
    "♪",
    "pause",
    "noise",
    "unk",
    "s",
    "p",
    "(s)",
    "SL",
    "spoken",
    "C#",
    "<3",
    "laughter",
]


@pytest.mark.parametrize("label", [*BLANKS, *SILENCES, *NOISES])
def test_silences_are_dropped_counted_and_noted(label):
    got = decode_words(textgrid(("words", [("0", "1", label), ("1", "2", "a"), ("2", "3", label)])).encode())
    assert [word.word for word in got.words] == ["a"]
    assert is_silence(label.strip())
    expected = [] if label in BLANKS else [("words-silence", f"2 labels: {label!r}")]
    assert [(note.code, note.found) for note in got.notes] == expected


@pytest.mark.parametrize("label", UNKNOWN)
def test_unknown_words_are_dropped_counted_and_noted(label):
    got = decode_words(textgrid(("words", [("0", "1", label), ("1", "2", "a")])).encode())
    assert [word.word for word in got.words] == ["a"]
    assert is_unknown(label)
    assert [(note.code, note.found) for note in got.notes] == [("words-unknown", f"1 labels: {label!r}")]


@pytest.mark.parametrize("label", WORDS_LIKE_THEM)
def test_words_that_look_like_marks_stay(label):
    assert rows_of(textgrid(("words", [("0", "1", label)]))) == [(0.0, 1.0, label)]


class TestTiersOfMfa:
    """MFA calls a tier of words after its speaker."""

    @pytest.mark.parametrize("name", ["2_scott - words", "2 - words", "scott - word", "a - b - words", "Scott - Words"])
    def test_one_speaker(self, name):
        assert len(rows_of(textgrid(("scott - phones", TWO), (name, TWO)))) == 2

    def test_a_plain_tier_comes_first(self):
        data = textgrid(("scott - words", TWO), ("words", TWO[:1]))
        assert len(rows_of(data)) == 1
        assert len(rows_of(data, "scott - words")) == 2

    def test_of_several_the_speaker_of_the_recording(self):
        data = textgrid(("guest - words", TWO), ("2_Scott - words", TWO[:1])).encode()
        got = decode_words(data, speakers=["scott", "2_scott"])
        assert (got.tier_name, len(got.words)) == ("2_Scott - words", 1)

    def test_of_several_the_only_one_with_words(self):
        data = textgrid(("guest - words", [("0", "9", "sil")]), ("host - words", TWO)).encode()
        assert decode_words(data, speakers=["other"]).tier_name == "host - words"

    def test_several_strangers_are_refused_by_name(self):
        problem = fault_of(textgrid(("guest - words", TWO), ("host - words", TWO))).problem
        assert problem.code == "textgrid-several-speakers"
        assert "'guest - words', 'host - words'" in problem.found

    def test_several_strangers_without_a_word(self):
        silent = [("0", "9", "sil")]
        assert code_of(textgrid(("guest - words", silent), ("host - words", silent))) == "textgrid-no-words"

    @pytest.mark.parametrize("name", ["guest - words", "host - words"])
    def test_each_of_several_strangers_can_be_named(self, name):
        data = textgrid(("guest - words", TWO), ("host - words", TWO[:1]))
        assert rows_of(data, name) == rows_of(textgrid(("words", TWO if name.startswith("guest") else TWO[:1])))


class TestTwoTiersOfOneName:
    """The first tier with words counts; if another one says otherwise, a note tells it."""

    @pytest.mark.parametrize("names", [("words", "words"), ("words", "Word"), ("a - words", "A - words")])
    @pytest.mark.parametrize("form", ["long", "short", "chronological"])
    def test_other_words_are_noted(self, names, form):
        tiers = [("phones", TWO), (names[0], TWO), (names[1], TWO[:1])]
        text = chronological(*tiers, xmax="1") if form == "chronological" else textgrid(*tiers, short=form == "short")
        got = decode_words(text.encode())
        assert [word.word for word in got.words] == ["one", "two"]
        assert [note.code for note in got.notes] == ["textgrid-several-tiers"]
        assert f"'{names[0]}' of 2 words, '{names[1]}' of 1 words" in got.notes[0].found

    def test_a_named_tier_that_is_there_twice_is_noted(self):
        got = decode_words(textgrid(("Mots", TWO), ("Mots", TWO[:1])).encode(), "Mots")
        assert [note.code for note in got.notes] == ["textgrid-several-tiers"]

    def test_equal_words_are_not_noted(self):
        assert decode_words(textgrid(("words", TWO), ("words", [*TWO, ("2", "9", "sil")])).encode()).notes == ()

    def test_a_tier_without_words_is_passed_by(self):
        got = decode_words(textgrid(("words", [("0", "9", "")]), ("words", TWO)).encode())
        assert (len(got.words), got.notes) == (2, ())


class TestStart:
    """Times are taken as they are; where that shifts each word against the recording, they are refused."""

    def grid(self, start, xmax):
        rows = [(f"{start + 1}", f"{start + 2}", "a")]
        text = textgrid(("words", rows), xmax=f"{xmax}")
        return decode_words(text.replace("xmin = 0 ", f"xmin = {start} ", 1).encode())

    def test_a_start_that_is_not_0_is_noted(self):
        got = self.grid(10, 70)
        assert [note.code for note in got.notes] == ["textgrid-start"]
        assert got.words[0].start == 11.0

    @pytest.mark.parametrize("form", ["long", "short", "chronological"])
    @pytest.mark.parametrize("start", ["5", "-5", "0.5"])
    def test_a_tier_that_starts_elsewhere_is_noted(self, form, start):
        tier = ("words", [("6", "10", "a")])
        if form == "chronological":
            text = chronological(tier).replace('"words" 0', f'"words" {start}')
        else:
            text = textgrid(tier, short=form == "short", xmax="10")
            head, mark, tail = text.partition("words")
            text = head + mark + tail.replace("0 \n" if form == "long" else "0\n", f"{start}\n", 1)
        got = decode_words(text.encode())
        assert [(note.code, note.found) for note in got.notes] == [("textgrid-start", f"a tier from {start} to 10 s")]
        got.require_fit(10.0)
        with pytest.raises(RecordingFault, match="textgrid-shifted"):
            got.require_fit(5.0)

    @pytest.mark.parametrize(("start", "xmax", "recording_s"), [(10, 70, 70.3), (0.0125, 60, 80), (0, 60, 80)])
    def test_times_of_this_recording(self, start, xmax, recording_s):
        self.grid(start, xmax).require_fit(recording_s)

    @pytest.mark.parametrize(("start", "xmax", "recording_s"), [(10, 70, 60), (10, 70, 64), (3600, 3660, 60.0)])
    def test_times_of_a_longer_recording(self, start, xmax, recording_s):
        with pytest.raises(RecordingFault, match="textgrid-shifted"):
            self.grid(start, xmax).require_fit(recording_s)


def chronological(*tiers, xmax="10"):
    """The same content as `textgrid` in Praat's chronological form, with its comments."""
    out = f'"Praat chronological TextGrid text file"\n0 {xmax}   ! Time domain.\n{len(tiers)}   ! Number of tiers.\n'
    out += "".join(f'"IntervalTier" "{name}" 0 {xmax}\n' for name, _ in tiers)
    rows = [(float(start), k, start, end, text) for k, (_, own) in enumerate(tiers, 1) for start, end, text in own]
    for _, k, start, end, text in sorted(rows):
        out += f'\n! {tiers[k - 1][0]}:\n{k} {start} {end}\n"{text}"\n'
    return out


class TestFormsOfPraat:
    ROWS = (("0", "1", 'say ""hi"" !'), ("1", "2.5", ""), ("2.5", "10", "two"))

    def test_the_chronological_form_reads_like_the_others(self):
        tiers = (("phones", [("0", "10", "x")]), ("words", self.ROWS))
        data = chronological(*tiers).encode()
        assert decode_words(data) == decode_words(textgrid(*tiers).encode())
        assert decode_words(data, "phones") == decode_words(textgrid(*tiers).encode(), "phones")
        assert decode_words(data.decode().encode("utf-16")) == decode_words(data)

    def test_a_cut_chronological_file_is_refused_wherever_it_is_cut(self):
        text = chronological(("phones", [("0", "10", "x")]), ("words", self.ROWS))
        for length in range(1, len(text.rstrip())):
            assert code_of(text[:length]) == "textgrid-syntax", length

    def test_a_point_tier_of_the_chronological_form(self):
        text = chronological(("bell", []), ("words", self.ROWS)).replace('"IntervalTier" "bell"', '"TextTier" "bell"')
        text = text.replace("\n2 1 2.5", '\n1 0.5\n"ding"\n2 1 2.5')
        assert [word for _, _, word in rows_of(text)] == ['say "hi" !', "two"]
        assert code_of(text, "bell") == "textgrid-no-word-tier"

    @pytest.mark.parametrize("short", [False, True])
    def test_comments_are_no_part_of_a_file(self, short):
        tiers = (("words", self.ROWS), ("phones", self.ROWS))
        text = textgrid(*tiers, short=short)
        lines = text.split("\n")
        commented = [f'{line} ! 5 "of" words' if k else line for k, line in enumerate(lines)]
        assert decode_words("\n".join(commented).encode()) == decode_words(text.encode())

    @given(st.lists(st.tuples(st.sampled_from(["0", "1", "-1", "9e9", "nan"]), st.text(max_size=4)), max_size=4))
    def test_other_chronological_text_raises_only_findings(self, entries):
        text = chronological(("words", self.ROWS)) + "".join(f'{number} 0 1 "{label}"\n' for number, label in entries)
        with contextlib.suppress(RecordingFault):
            decode_words(text.encode())

    @pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
    def test_every_form_is_known_by_its_beginning(self, codec):
        for text in (textgrid(("words", TWO)), textgrid(("words", TWO), short=True), chronological(("w", self.ROWS))):
            assert is_textgrid(text.encode(codec))
        for text in ("", "hello there", "File type of a text", '{"words": []}'):
            assert not is_textgrid(text.encode(codec))


@pytest.mark.parametrize("name", ["words", "word", "Words", "WORD", '""word""', "'words'", " words "])
def test_word_tiers_by_name(name):
    assert len(rows_of(textgrid(("phones", TWO), (name, TWO[:1]), ("word", TWO)))) == 1


def test_a_named_tier_and_no_such_tier():
    data = textgrid(("phones", TWO[:1]), ("Mots", TWO))
    assert len(rows_of(data, "Mots")) == 2
    for tier in (None, "mots", "words"):
        problem = fault_of(data, tier).problem
        assert problem.code == "textgrid-no-word-tier"
        assert "'phones' (intervals), 'Mots' (intervals)" in problem.found


def test_no_tier_and_a_point_tier_are_no_word_tier():
    assert "no tiers" in fault_of(textgrid()).problem.found
    points = HEADER + '0\n1\n<exists>\n1\n"TextTier"\n"words"\n0\n1\n1\n0.5\n"a"\n'
    assert "'words' (points)" in fault_of(points).problem.found


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize(
    ("start", "expected"),
    [("-0", 0.0), ("-0.0", 0.0), ("-1e-10", 0.0), ("1e-05", 1e-05), (".25", 0.25), ("+0.5", 0.5), ("5e-324", 5e-324)],
)
def test_every_form_of_a_number(short, start, expected):
    got = rows_of(textgrid(("words", [(start, "1.", "a")]), short=short))
    assert got == [(expected, 1.0, "a")]
    assert str(got[0][0]) == str(expected)  # no -0.0


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize(
    ("start", "end"),
    [("-0.5", "1"), ("-1e-8", "1"), ("2", "1"), ("nan", "1"), ("0", "inf"), ("0", "1e999"), ("-2", "-1")],
)
def test_bad_intervals_name_word_times_and_line(short, start, end):
    problem = fault_of(textgrid(("words", [("0", "0", ""), (start, end, "bad one")]), short=short)).problem
    assert problem.code == "textgrid-bad-interval"
    assert "'bad one' from" in problem.found
    assert f"line {16 if short else 20}" in problem.found


def test_words_without_duration_are_dropped_with_one_note():
    got = decode_words(
        textgrid(("words", [("0", "0", "a"), ("0", "1", "b"), ("1", "1", "c"), ("1", "1", "")])).encode()
    )
    assert [word.word for word in got.words] == ["b"]
    assert [(note.code, note.found) for note in got.notes] == [("words-zero-length", "2 words")]


def test_overlap_is_refused_naming_both_and_silences_count():
    problem = fault_of(textgrid(("words", [("0", "1", "first"), ("0.98", "2", "second")]))).problem
    assert problem.code == "textgrid-overlap"
    assert "'first'" in problem.found
    assert "'second'" in problem.found
    assert code_of(textgrid(("words", [("0", "1", ""), ("0.5", "2", "a")]))) == "textgrid-overlap"
    assert code_of(textgrid(("words", [("0", "9", "a"), ("1", "2", ""), ("3", "4", "b")]))) == "textgrid-overlap"


def test_a_tiny_overlap_moves_the_later_start_only():
    rows = [("0", "1", "a"), ("0.99995", "2", "b"), ("2", "3", ""), ("2.99995", "4", "c")]
    assert rows_of(textgrid(("words", rows))) == [(0.0, 1.0, "a"), (1.0, 2.0, "b"), (2.99995, 4.0, "c")]


@pytest.mark.parametrize(("start", "noted"), [("0.99995", False), ("0.9925", True), ("0.99", True)])
def test_overlaps_of_an_aligner_are_closed_and_those_of_rounding_without_a_note(start, noted):
    got = decode_words(textgrid(("words", [("0", "1", "a"), (start, "2", "b")])).encode())
    assert [(word.start, word.end) for word in got.words] == [(0.0, 1.0), (1.0, 2.0)]
    assert [note.code for note in got.notes] == (["words-overlap"] if noted else [])


def test_tiny_overlaps_do_not_add_up():
    rows = [("0", "1", "a"), ("0.991", "0.992", ""), ("0.983", "2", "b")]
    problem = fault_of(textgrid(("words", rows))).problem
    assert problem.code == "textgrid-overlap"
    assert "'a'" in problem.found


def test_intervals_out_of_order_are_refused():
    assert code_of(textgrid(("words", [("5", "6", "a"), ("1", "2", "b")]))) == "textgrid-bad-interval"


@pytest.mark.parametrize("rows", [[], [("0", "1", "")], [("0", "1", "sil"), ("1", "2", "sp")], [("1", "1", "a")]])
def test_no_words(rows):
    for short in (False, True):
        assert code_of(textgrid(("words", rows), short=short)) == "textgrid-no-words"


@pytest.mark.parametrize("data", [b"", b"  \n", b"\r\n\t"])
def test_empty(data):
    assert code_of(data) == "textgrid-empty"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (HEADER.encode() + b"caf\xe9", f"byte 0xe9 at offset {len(HEADER) + 3}"),
        (textgrid(("words", [("0", "1", "a\0b")])).encode(), "NUL at byte offset"),
        (textgrid(("words", TWO)).encode("utf-16")[:-1], "offset"),
        (textgrid(("words", TWO)).encode("utf-32"), "NUL"),
        (textgrid(("words", TWO)).encode("utf-16-le")[2:], "NUL at byte offset 1"),
        (HEADER.encode() + b"\xed\xa0\x80", "is not UTF-8"),
        (b"\xff\xfe" + HEADER.encode("utf-16-le") + b"\x00\xd8a\x00", "is not UTF-16-LE"),
    ],
)
def test_wrong_encodings_name_the_offset(data, word):
    problem = fault_of(data).problem
    assert problem.code == "textgrid-encoding"
    assert word in problem.found
    offset = re.search(r"offset (\d+)", problem.found)
    assert offset is not None
    assert int(offset[1]) < len(data)


@pytest.mark.parametrize(
    "text",
    [
        '{"start": 0, "end": 1, "tiers": {}}',
        "[" * 100000,
        "5",
        "null",
        "<html>",
        "ooBinaryFile\x08TextGrid",
        HEADER,
        HEADER + "0\n1\n<exists>\n0\n",
        HEADER + "xmin = 0\nxmax = 1\ntiers? <absent>\n",
        HEADER.replace("TextGrid", "PitchTier") + "0\n1\n",
        'File type = "ooTextFile"\n',
        textgrid(("words", TWO), xmax="inf"),
    ],
)
def test_text_that_is_no_textgrid(text):
    assert code_of(text) == "textgrid-syntax"


@pytest.mark.parametrize("short", [False, True])
def test_truncation_anywhere_never_loses_words_silently(short):
    rows = [(str(k), str(k + 1), f"w{k}") for k in range(4)]
    text = textgrid(("words", rows), ("phones", rows), short=short)
    whole = rows_of(text)
    for length in range(1, len(text.rstrip())):
        assert code_of(text[:length]) in {"textgrid-syntax", "textgrid-empty"}, length
    assert rows_of(text.rstrip()) == whole  # praatio alone loses the last label of a short file here


def test_a_damaged_number_names_its_line():
    assert "line 16" in fault_of(textgrid(("words", [("1x", "2", "a")]))).problem.found
    assert "never closed" in fault_of(textgrid(("words", TWO)).replace('"two"', '"two')).problem.found


@pytest.mark.parametrize("count", ["1", "3", "99999999999999999999", "-1", "1.5", "nan"])
def test_counts_are_believed_only_if_they_hold(count):
    for short in (False, True):
        text = textgrid(("words", TWO), short=short)
        changed = text.replace("\n2\n", f"\n{count}\n", 1) if short else text.replace("size = 2", f"size = {count}")
        assert changed != text
        assert code_of(changed) == "textgrid-syntax"


def test_the_size_limit():
    assert code_of(b" " * (MAX_BYTES + 1)) == "textgrid-too-large"


@pytest.mark.parametrize(
    "unit", ['"', '"a', " ", "\n", "1 ", 'text = "a"x ', "xmin = 1x ", '"IntervalTier" ', "item [ ", "."]
)
def test_time_grows_no_faster_than_the_file(unit):
    frame = HEADER + 'xmin = 0\nxmax = 1\nitem []:\nitem [1]:\nclass = "IntervalTier"\nname = "w"\nxmin = 0\nxmax = 1\n'
    text = frame + "intervals [1]:\n" + unit * (200_000 // len(unit))
    start = time.process_time()
    assert code_of(text) == "textgrid-syntax"
    assert time.process_time() - start < 2.0  # about 0.1 s; quadratic would be minutes


@pytest.mark.parametrize(
    ("words", "xmax"),
    [
        ([WordInterval("a", 0, 2), WordInterval("b", 1, 3)], 3.0),
        ([WordInterval("a", 0, 4)], 3.0),
        ([WordInterval("a", 1, 1)], 3.0),
        ([WordInterval("a", -1, 1)], 3.0),
        ([WordInterval("a", float("nan"), 1)], 3.0),
        ([WordInterval("a", 0, 1)], float("inf")),
        ([WordInterval("a\0", 0, 1)], 3.0),
        ([WordInterval("\ud800", 0, 1)], 3.0),
    ],
)
def test_encoder_refuses_what_it_cannot_write(words, xmax):
    with pytest.raises(ValueError):
        encode_words(words, xmax)


PIECES = st.sampled_from(
    [
        '"',
        "item [",
        "item []:",
        "item [1]:",
        "intervals [1]:",
        "points [",
        'class = "IntervalTier"',
        "xmin = ",
        "xmax = ",
        '"IntervalTier"',
        '"TextTier"',
        '"words"',
        'name = "words"',
        'text = "a"',
        "0",
        "1",
        "-1",
        "1e9",
        "٣",
        "nan",
        ".",
        "\n",
        " ",
        "<exists>",
        "size = 1",
        "intervals: size = 1",
        "number = ",
        'mark = ""',
        "=",
        "\x1f",
        "\u2028",
        "1_0",
    ]
)


@given(
    st.lists(PIECES, max_size=40).map(" \n".join) | st.lists(PIECES, max_size=40).map("".join) | st.text(max_size=50)
)
@settings(deadline=None, max_examples=300)
def test_random_text_raises_only_findings(text):
    for candidate in (text, HEADER + text, HEADER + "xmin = 0\nxmax = 1\nsize = 1\nitem []:\n" + text):
        try:
            got = decode_words(candidate.encode())
        except RecordingFault:
            continue
        assert all(0 <= a.start < a.end for a in got.words)


@given(st.binary(max_size=100))
def test_random_bytes_raise_only_findings(data):
    for candidate in (data, HEADER.encode() + data, b"\xff\xfe" + data):
        with contextlib.suppress(RecordingFault):
            decode_words(candidate)


@given(st.booleans(), st.lists(st.tuples(st.integers(0, 10**4), PIECES), min_size=1, max_size=4), st.integers(0, 3))
@settings(deadline=None, max_examples=300)
def test_mutated_files_raise_only_findings(short, inserts, cut):
    text = textgrid(("words", TWO), ("phones", TWO), short=short)
    for place, piece in inserts:
        at = place % len(text)
        text = text[:at] + piece + text[at + cut :]
    try:
        got = decode_words(text.encode())
    except RecordingFault:
        return
    assert all(a.end <= b.start for a, b in zip(got.words, got.words[1:], strict=False))
