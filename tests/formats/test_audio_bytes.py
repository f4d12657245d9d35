"""WAV: what a writer meant is what is read, sample for sample; what no writer meant is refused by name."""

from __future__ import annotations

import contextlib
import io
import struct
import time
import tracemalloc

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from recording_builders import SAMPLE, SHARED, chunk, fmt_body, needs_sample, pcm16, riff

from omniges.errors import RecordingFault
from omniges.formats.audio import decode_flac, decode_wav, encode_wav, open_wav, wav_parts

FMT = chunk(b"fmt ", fmt_body(1, 16))
TONE = pcm16([1, -2, 3, -32768, 32767])
GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
SUBTYPES = {
    "pcm8": "PCM_U8",
    "alaw": "ALAW",
    "mulaw": "ULAW",
    "pcm16": "PCM_16",
    "pcm24": "PCM_24",
    "pcm32": "PCM_32",
    "float32": "FLOAT",
    "float64": "DOUBLE",
}


def extensible(tag: int, bits: int, channels: int = 1, tail: bytes = GUID_TAIL) -> bytes:
    return fmt_body(0xFFFE, bits, channels) + struct.pack("<HHIH", 22, bits, 0, tag) + tail


def code_of(data: bytes) -> str:
    with pytest.raises(RecordingFault) as caught:
        decode_wav(data)
    return caught.value.problem.code


@given(
    st.sampled_from(sorted(SUBTYPES)),
    hnp.arrays(np.int32, st.tuples(st.integers(2, 40), st.integers(1, 3)), unique=True),
    st.sampled_from([8000, 16000, 44100, 48000]),
    st.sampled_from(["WAV", "WAVEX", "RF64"]),
    st.booleans(),
)
@settings(deadline=None)
def test_every_encoding_reads_as_libsndfile_reads_it(encoding, values, rate, container, big_endian):
    buffer = io.BytesIO()
    data = values if not encoding.startswith("float") else values / 2.0**31
    big_endian = big_endian and soundfile.check_format(container, SUBTYPES[encoding], "BIG")
    endian = "BIG" if big_endian else "FILE"
    soundfile.write(buffer, data, rate, subtype=SUBTYPES[encoding], format=container, endian=endian)
    assert buffer.getvalue().startswith(b"RIFX") == big_endian
    expected, _ = soundfile.read(io.BytesIO(buffer.getvalue()), dtype="float64", always_2d=True)
    if (expected == expected[0]).all():
        return
    wav = decode_wav(buffer.getvalue())
    assert (wav.encoding, wav.rate_hz, wav.channels) == (encoding, rate, values.shape[1])
    rare = encoding in {"pcm8", "alaw", "mulaw"} or container == "RF64" or big_endian
    assert [note.code for note in wav.notes] == ["wav-rare-encoding"] * rare
    assert wav.samples.dtype == np.float32
    np.testing.assert_array_equal(wav.samples.reshape(expected.shape), expected.astype(np.float32))


@given(hnp.arrays(np.float32, st.integers(2, 50), elements=st.floats(-4, 4, width=32)))
def test_float_round_trip_is_exact_and_deterministic(samples):
    data = encode_wav(samples, 16_000)
    assert data == encode_wav(samples.copy(), 16_000)
    if samples.min() == samples.max():
        assert code_of(data) == "wav-silent"
    else:
        assert decode_wav(data).samples.tobytes() == samples.tobytes()


@given(hnp.arrays(np.float32, st.integers(2, 50), elements=st.floats(-4, 4, width=32)))
def test_pcm16_rounds_and_saturates(samples):
    data = encode_wav(samples, 16_000, "pcm16")
    expected = np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
    assert np.frombuffer(data[44:], "<i2").tolist() == expected.tolist()
    if expected.min() != expected.max():
        wav = decode_wav(data)
        np.testing.assert_array_equal(wav.pcm, expected)
        np.testing.assert_array_equal(wav.samples, expected / 32768)


@pytest.mark.parametrize("bad", [[[0.0, 1.0]], [0.0, np.nan], [0.0, np.inf]])
def test_encoder_refuses_what_it_cannot_write(bad):
    with pytest.raises(ValueError, match=r"expected (finite samples|samples \(n,\))"):
        encode_wav(np.asarray(bad, np.float32), 16_000)


@needs_sample
def test_the_real_float_file_and_its_bytes():
    data = (SAMPLE / "wave16k" / "2_scott_0_1_1.wav").read_bytes()
    wav = decode_wav(data)
    assert (wav.encoding, wav.rate_hz, wav.channels, wav.samples.shape) == ("float32", 16_000, 1, (1_025_558,))
    assert encode_wav(wav.samples, 16_000) == data  # the export form is the data set's own


@needs_sample
def test_the_real_pcm_file_reads_as_libsndfile_reads_it():
    path = SAMPLE / "wave16k" / "2_scott_0_2_2.wav"
    wav = decode_wav(memoryview(path.read_bytes()))
    assert wav.pcm is not None
    np.testing.assert_array_equal(wav.pcm, soundfile.read(path, dtype="int16")[0])
    np.testing.assert_array_equal(wav.samples, soundfile.read(path, dtype="float32")[0])


@needs_sample
def test_an_mp3_named_wav_says_what_it_is():
    with pytest.raises(RecordingFault, match="MP3") as caught:
        decode_wav((SHARED / "beat2_sample" / "quirks" / "2_scott_0_103_103_28s.wav").read_bytes())
    assert caught.value.problem.code == "wav-not-riff"


def test_integer_samples_are_kept_for_lossless_storage():
    raw = bytes([1, 2, 3, 255, 255, 127, 0, 0, 128])
    wav = decode_wav(riff(chunk(b"fmt ", fmt_body(1, 24)), chunk(b"data", raw)))
    assert wav.pcm is not None
    assert wav.pcm.dtype == np.int32
    assert wav.pcm.tolist() == [0x030201, 0x7FFFFF, -0x800000]
    stereo = decode_wav(riff(chunk(b"fmt ", fmt_body(1, 16, 2, 48_000)), chunk(b"data", pcm16([1, 2, 3, 4]))))
    assert stereo.pcm is None
    assert stereo.samples.tolist() == [[1 / 32768, 2 / 32768], [3 / 32768, 4 / 32768]]
    assert stereo.rate_hz == 48_000


def test_unknown_and_odd_chunks_are_skipped_and_what_follows_the_data_is_no_audio():
    data = riff(chunk(b"LIST", b"abc"), FMT, chunk(b"JUNK", b"x" * 7), chunk(b"data", TONE), chunk(b"LIST", b"tail"))
    assert decode_wav(data).samples.shape == (5,)


@pytest.mark.parametrize("tail", [chunk(b"data", b""), b"\0" * 99, b"data", b"\0data\4\0\0\0abcd", b"\xff" * 50])
def test_no_second_audio_behind_the_data(tail):
    assert decode_wav(riff(FMT, chunk(b"data", TONE)) + tail).samples.shape == (5,)


def test_unaligned_data_is_read():
    floats = np.asarray([0.5, -0.25], "<f4").tobytes()
    assert decode_wav(riff(chunk(b"fmt ", fmt_body(3, 32) + b"\0\0"), chunk(b"data", floats))).samples.tolist() == [
        0.5,
        -0.25,
    ]


@pytest.mark.parametrize(
    ("riff_size", "data_size"),
    [(0, 0), (0xFFFFFFFF, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0, 0xFFFFFFFF), (0x7FFFF024, 0x7FFFF000)],
)
def test_a_streamed_header_takes_whole_samples_to_the_end(riff_size, data_size):
    data = riff(FMT, b"data" + struct.pack("<I", data_size) + TONE + b"\x7f", size=riff_size)
    wav = decode_wav(data)
    assert wav.samples.shape == (5,)
    assert [note.code for note in wav.notes] == ["wav-streamed-header"]
    assert "1 left over" in wav.notes[0].found


SOUND = pcm16([int(9000 * np.sin(k / 5)) for k in range(8000)])


@pytest.mark.parametrize(
    ("fmt", "data_size", "riff_size"),
    [
        (fmt_body(1, 16), 0, 36),  # a stopped recorder
        (fmt_body(1, 16), 0, 4096),
        (fmt_body(1, 16), 0x80000000, 0x80000024),  # arecord
        (fmt_body(1, 16), 0x7FFFFFFF, 0x7FFFFFFF),
        (fmt_body(1, 24), 0x7FFFEFFF, 0x7FFFF023),  # sox: whole samples below 0x7FFFF000
        (fmt_body(1, 24, 2), 0x7FFFEFFE, 0x7FFFF022),
        (fmt_body(3, 32) + b"\0\0", 0x7FFFF000, 0x7FFFF032),  # sox with a fact chunk
        (fmt_body(1, 16), 0xFFFFFFFE, 0xFFFFFFFF),
        (fmt_body(1, 16), 0xFFFFFFDA, 0xFFFFFFFE),  # ffmpeg
    ],
)
@pytest.mark.parametrize("left", [0, 1])
def test_a_size_that_a_writer_left_open_takes_all_samples(fmt, data_size, riff_size, left):
    body = (np.frombuffer(SOUND, "<i2") / 32768).astype("<f4").tobytes() if fmt[:2] == b"\3\0" else SOUND[:15996]
    data = riff(
        chunk(b"fmt ", fmt), chunk(b"FLLR", bytes(100)), b"data" + struct.pack("<I", data_size) + body, size=riff_size
    )
    data = data[: len(data) - left]
    wav = decode_wav(data)
    assert len(wav.samples) == (len(body) - left) // int.from_bytes(fmt[12:14], "little")
    assert [note.code for note in wav.notes] == ["wav-streamed-header"]


@pytest.mark.parametrize("more", [1, 2, 3, 8, 36, 44])
def test_a_size_a_few_bytes_too_large_takes_all_samples(more):
    data = riff(FMT, chunk(b"data", SOUND, len(SOUND) + more))
    wav = decode_wav(data)
    assert wav.pcm is not None
    assert wav.pcm.tobytes() == SOUND
    assert [note.code for note in wav.notes] == ["wav-length-mended"]


def test_an_odd_byte_of_padding_that_was_counted_is_left_out():
    data = riff(FMT, chunk(b"data", SOUND + b"\x55"), chunk(b"LIST", b"tail"))
    wav = decode_wav(data)
    assert wav.pcm is not None
    assert wav.pcm.tobytes() == SOUND
    assert [note.code for note in wav.notes] == ["wav-length-mended"]


@pytest.mark.parametrize("missing", [66, 1000, 15_000])
def test_more_than_a_few_missing_bytes_are_a_file_cut_off(missing):
    data = riff(FMT, chunk(b"data", SOUND))
    assert code_of(data[: len(data) - missing]) == "wav-truncated"


def test_a_long_silence_after_a_size_of_0_takes_no_time():
    data = riff(FMT, b"data" + bytes(4) + bytes(64 << 20) + SOUND, size=0)
    start = time.process_time()
    assert len(decode_wav(data).samples) == (32 << 20) + 8000
    assert time.process_time() - start < 2


def test_an_empty_data_chunk_before_others_is_empty():
    assert code_of(riff(FMT, chunk(b"data", b""), chunk(b"LIST", b"a tail"), chunk(b"id3 ", b"odd"))) == "wav-empty"


@pytest.mark.parametrize("form", [b"RF64", b"BW64"])
def test_long_forms_take_their_size_from_ds64(form):
    def long(data_size: int, body: bytes = SOUND) -> bytes:
        ds64 = chunk(b"ds64", struct.pack("<QQQI", 0, data_size, 0, 0))
        head = form + struct.pack("<I", 0xFFFFFFFF) + b"WAVE" + ds64 + FMT
        return head + b"data" + struct.pack("<I", 0xFFFFFFFF) + body + chunk(b"LIST", b"tail")

    wav = decode_wav(long(len(SOUND)))
    assert wav.pcm is not None
    assert wav.pcm.tobytes() == SOUND
    assert [(note.code, note.found) for note in wav.notes] == [("wav-rare-encoding", form.decode())]
    assert code_of(long(len(SOUND) + 5000)) == "wav-truncated"
    assert code_of(form + bytes(40)) == "wav-not-riff"


CODES = {
    "empty": (b"", "wav-empty"),
    "no samples": (riff(FMT, chunk(b"data", b"")), "wav-empty"),
    "streamed and empty": (riff(FMT, chunk(b"data", b""), size=0), "wav-empty"),
    "headerless": (TONE * 40, "wav-not-riff"),
    "zeros": (bytes(100), "wav-not-riff"),
    "flac": (b"fLaC" + bytes(40), "wav-not-riff"),
    "ogg": (b"OggS" + bytes(40), "wav-not-riff"),
    "mp3 frame": (b"\xff\xfb\x90" + bytes(40), "wav-not-riff"),
    "avi": (b"RIFF\x10\0\0\0AVI " + bytes(40), "wav-not-riff"),
    "big-endian zeros": (b"RIFX" + bytes(40), "wav-not-riff"),
    "two data chunks": (riff(FMT, chunk(b"data", TONE), chunk(b"data", TONE)), "wav-damaged-header"),
    "two data chunks apart": (
        riff(FMT, chunk(b"data", TONE), chunk(b"LIST", b"abcd"), chunk(b"data", TONE)),
        "wav-damaged-header",
    ),
    "two joined files": (riff(FMT, chunk(b"data", TONE)) * 2, "wav-damaged-header"),
    "chunks without end": (riff(FMT, chunk(b"JUNK", b"") * 20_000, chunk(b"data", TONE)), "wav-damaged-header"),
    "chunks without end behind": (riff(FMT, chunk(b"data", TONE), chunk(b"JUNK", b"") * 20_000), "wav-damaged-header"),
    "ADPCM": (riff(chunk(b"fmt ", fmt_body(2, 4)), chunk(b"data", TONE)), "wav-unsupported-encoding"),
    "float16": (riff(chunk(b"fmt ", fmt_body(3, 16)), chunk(b"data", TONE)), "wav-unsupported-encoding"),
    "foreign guid": (
        riff(chunk(b"fmt ", extensible(1, 16, tail=bytes(14))), chunk(b"data", TONE)),
        "wav-unsupported-encoding",
    ),
    "short extensible": (riff(chunk(b"fmt ", fmt_body(0xFFFE, 16)), chunk(b"data", TONE)), "wav-damaged-header"),
    "data before fmt": (riff(chunk(b"data", TONE), FMT), "wav-damaged-header"),
    "two formats": (riff(FMT, FMT, chunk(b"data", TONE)), "wav-damaged-header"),
    "short fmt": (riff(chunk(b"fmt ", bytes(12)), chunk(b"data", TONE)), "wav-damaged-header"),
    "no data": (riff(FMT), "wav-damaged-header"),
    "0 channels": (riff(chunk(b"fmt ", fmt_body(1, 16, 0)), chunk(b"data", TONE)), "wav-damaged-header"),
    "33 channels": (riff(chunk(b"fmt ", fmt_body(1, 16, 33)), chunk(b"data", TONE)), "wav-damaged-header"),
    "rate 0": (riff(chunk(b"fmt ", fmt_body(1, 16, 1, 0)), chunk(b"data", TONE)), "wav-damaged-header"),
    "rate 999": (riff(chunk(b"fmt ", fmt_body(1, 16, 1, 999)), chunk(b"data", TONE)), "wav-damaged-header"),
    "rate 1 MHz": (riff(chunk(b"fmt ", fmt_body(1, 16, 1, 10**6)), chunk(b"data", TONE)), "wav-damaged-header"),
    "half a sample": (riff(FMT, chunk(b"data", TONE[:-1])), "wav-damaged-header"),
    "constant": (riff(FMT, chunk(b"data", pcm16([7, 7, 7]))), "wav-silent"),
    "constant channels": (riff(chunk(b"fmt ", fmt_body(1, 16, 2)), chunk(b"data", pcm16([7, 8, 7, 8]))), "wav-silent"),
    "beyond float32": (
        riff(chunk(b"fmt ", fmt_body(3, 64)), chunk(b"data", np.asarray([0, 1e300]).tobytes())),
        "wav-not-finite",
    ),
}


@pytest.mark.parametrize("name", CODES)
def test_known_damage(name):
    data, code = CODES[name]
    assert code_of(data) == code


def test_a_lying_block_align_is_damage():
    body = bytearray(fmt_body(1, 16))
    body[12] = 4
    assert code_of(riff(chunk(b"fmt ", bytes(body)), chunk(b"data", TONE[:8]))) == "wav-damaged-header"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_with_place_and_count(value):
    samples = np.asarray([0.0, 0.5, value, value], "<f4")
    with pytest.raises(RecordingFault, match=r"at sample 2, 2 such in 4") as caught:
        decode_wav(riff(chunk(b"fmt ", fmt_body(3, 32)), chunk(b"data", samples.tobytes())))
    assert caught.value.problem.code == "wav-not-finite"


def test_truncation_at_every_byte_is_a_finding():
    whole = riff(chunk(b"LIST", b"abcd"), FMT, chunk(b"data", TONE))
    assert decode_wav(whole).samples.size == 5
    for length in range(1, len(whole)):
        expected = "wav-not-riff" if length < 4 else "wav-truncated"
        # A file that ends exactly after its format has no data chunk at all.
        boundary = length == len(whole) - len(TONE) - 8
        assert code_of(whole[:length]) == ("wav-damaged-header" if boundary else expected), length


def test_truncation_names_how_many_of_how_many():
    with pytest.raises(RecordingFault, match="3 of 5 samples"):
        decode_wav(riff(FMT, chunk(b"data", TONE))[:-4])


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_findings(data):
    for candidate in (data, b"RIFF\0\0\0\0WAVE" + data, riff(FMT, data)):
        with contextlib.suppress(RecordingFault):
            decode_wav(candidate)


@given(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated_files_raise_only_findings(changes):
    whole = bytearray(riff(chunk(b"fmt ", extensible(1, 24, 2)), chunk(b"data", bytes(range(12)))))
    for place, value in changes:
        whole[place % len(whole)] = value
    try:
        wav = decode_wav(bytes(whole))
    except RecordingFault:
        return
    assert np.isfinite(wav.samples).all()


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(2, 700), elements=st.floats(-1.5, 1.5, width=32)),
    st.integers(1, 300),
    st.sampled_from(["pcm16", "float32"]),
)
def test_blocks_of_a_stream_are_the_whole_file(samples, block, encoding):
    data = encode_wav(samples, 16000, encoding)
    try:
        whole = decode_wav(data).samples
    except RecordingFault as fault:
        with pytest.raises(RecordingFault, match=fault.problem.code):
            list(open_wav(data).blocks(block))
        return
    stream = open_wav(data)
    assert stream.frames == len(whole)
    np.testing.assert_array_equal(np.concatenate(list(stream.blocks(block))), whole)
    parts = wav_parts([samples[k : k + block] for k in range(0, len(samples), block)], len(samples), 16000)
    assert b"".join(parts) == encode_wav(samples, 16000, "pcm16")


@pytest.mark.parametrize("announced", [9, 11])
def test_more_or_fewer_samples_than_announced_are_refused(announced):
    with pytest.raises(ValueError, match="samples, found"):
        list(wav_parts([np.zeros(10, np.float32)], announced, 16000))


class TestFlac:
    def flac(self, pcm: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        soundfile.write(buffer, pcm, 16_000, "PCM_16", format="FLAC")
        return buffer.getvalue()

    @pytest.mark.parametrize("count", [1, 1 << 16, (1 << 16) + 1, 200_000])
    def test_samples_come_back_up_to_their_number(self, count: int) -> None:
        pcm = np.random.default_rng(0).integers(-(1 << 15), 1 << 15, count).astype(np.int16)
        found, bits = decode_flac(self.flac(pcm), count)
        assert bits == 16
        np.testing.assert_array_equal(found, pcm)
        with pytest.raises(RecordingFault, match="wav-damaged-header"):
            decode_flac(self.flac(pcm), count - 1)

    def test_a_claim_of_many_samples_allocates_none(self) -> None:
        pcm = np.arange(1000, dtype=np.int16)
        data = bytearray(self.flac(pcm))
        data[21] |= 0x0F  # the 36 bits of the number of samples in STREAMINFO
        data[22:26] = b"\xff" * 4
        tracemalloc.start()
        try:
            with contextlib.suppress(RecordingFault):
                np.testing.assert_array_equal(decode_flac(bytes(data), 1000)[0], pcm)
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()

    def test_bytes_that_are_none(self) -> None:
        for data in (b"", b"fLaC", b"fLaC" + bytes(100)):
            with pytest.raises(RecordingFault):
                decode_flac(data, 1 << 60)
