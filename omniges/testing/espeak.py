"""Text to speech by eSpeak NG, as a process: ``python -m omniges.testing.espeak``.

eSpeak NG is under the GPL, so it runs in a separate process. The process reads one JSON object from standard input:
``voice``, ``words_per_minute``, ``pitch``, and ``sentences`` in SSML. It writes one line of JSON, then the audio
samples of all sentences as int16. The line has ``version``, ``rate_hz`` and, for each sentence, the number of audio
samples and a list of events. An event is [type, sample, phone]. The type is ``word`` or ``phone``, and ``sample`` is
the time of the event, as the number of audio samples since the start of the sentence. This module imports nothing of
omniges.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import sys
from typing import Any, Final

_SYNCHRONOUS, _PHONEME_EVENTS, _DONT_EXIT = 2, 0x1, 0x8000
_RATE, _PITCH = 1, 3
_UTF8, _SSML = 1, 0x10
_END_OF_LIST: Final = 0
_KINDS: Final = {1: "word", 7: "phone"}


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """The C structure `espeak_EVENT` of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def find_library() -> tuple[str, str | None] | None:
    """Return the path of the eSpeak NG library and of its data folder, or None if eSpeak NG is not installed.

    If the package espeakng-loader is installed, its library and data folder are returned. Otherwise the library of the
    system is returned, with None in place of the data folder.
    """
    try:
        import espeakng_loader  # noqa: PLC0415 - optional
    except ModuleNotFoundError:
        found = ctypes.util.find_library("espeak-ng")
        return (found, None) if found else None
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


def speak(request: dict[str, Any], library: str, data: str | None) -> tuple[dict[str, Any], bytes]:
    """Synthesize speech for sentences.

    Args:
        request: The JSON object that the module's docstring describes.
        library: Path or name of the shared library.
        data: Data folder of eSpeak NG; None for the folder of the system.

    Returns:
        The JSON object of the output line, and the audio samples (int16) as bytes.

    Raises:
        OSError: The library or the voice cannot be loaded.
    """
    engine = ctypes.CDLL(library)
    engine.espeak_Info.restype = ctypes.c_char_p
    rate_hz = engine.espeak_Initialize(_SYNCHRONOUS, 0, data.encode() if data else None, _PHONEME_EVENTS | _DONT_EXIT)
    if rate_hz <= 0 or engine.espeak_SetVoiceByName(request["voice"].encode()):
        raise OSError(f"the voice {request['voice']} cannot be loaded")
    engine.espeak_SetParameter(_RATE, request["words_per_minute"], 0)
    engine.espeak_SetParameter(_PITCH, request["pitch"], 0)
    samples = bytearray()
    events: list[list[Any]] = []

    def collect(wav: Any, count: int, event: Any) -> int:
        if wav and count:
            samples.extend(ctypes.string_at(wav, 2 * count))
        number = 0
        while event[number].type != _END_OF_LIST:
            one = event[number]
            if one.type in _KINDS:
                phone = one.id.string.decode("ascii", "replace") if _KINDS[one.type] == "phone" else ""
                events.append([_KINDS[one.type], one.sample, phone])
            number += 1
        return 0

    callback = _Callback(collect)  # the variable keeps it alive, because the library stores only its address
    engine.espeak_SetSynthCallback(callback)
    spoken = []
    for sentence in request["sentences"]:
        begun, text = len(samples), sentence.encode()
        events.clear()
        engine.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8 | _SSML, None, None)
        engine.espeak_Synchronize()
        spoken.append({"samples": (len(samples) - begun) // 2, "events": list(events)})
    version = engine.espeak_Info(None).decode("ascii", "replace").split(":")[0].split()[0]
    return {"version": version, "rate_hz": rate_hz, "sentences": spoken}, bytes(samples)


def main() -> int:
    """Answer the request on standard input and return 0. If eSpeak NG cannot be loaded, write an error and return 3."""
    found = find_library()
    if found is None:
        sys.stderr.write("eSpeak NG is not installed")
        return 3
    try:
        answer, samples = speak(json.load(sys.stdin), *found)
    except OSError as error:
        sys.stderr.write(f"eSpeak NG cannot be used: {error}")
        return 3
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
