"""What a tokenizer.json has to be, whichever package version wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

_BYTE_LEVEL: Final = {"type": "ByteLevel", "trim_offsets": True}
_PIPELINE: Final[dict[str, Any]] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": _BYTE_LEVEL | {"add_prefix_space": False, "use_regex": False},
    "post_processor": None,
    "decoder": _BYTE_LEVEL | {"add_prefix_space": True, "use_regex": True},
}
"""All of tokenizer.json but the model. Any other step could turn one word into another."""
_MODEL: Final[dict[str, Any]] = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
"""All of the model but vocabulary and merges. Dropout would make the subwords of a word random."""


def tokenizer_problem(data: bytes) -> str | None:
    """Return why bytes are no tokenizer.json as `train_tokenizer` writes it, or None.

    Checked are the whole pipeline, and that vocabulary and merges belong together: decode(encode(s)) = s then holds
    for every Unicode string, whatever package version wrote the file. The native library, which trusts its input, is
    given nothing else.
    """
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_without_twins)
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return f"no JSON document ({error})"
    if not isinstance(document, dict):
        return f"an object expected, found {type(document).__name__}"
    model = document.get("model")
    if not isinstance(model, dict):
        return "no model"
    found = {name: value for name, value in document.items() if name != "model"}
    settings = {name: value for name, value in model.items() if name not in {"vocab", "merges"}}
    return (
        _difference(found, _PIPELINE)
        or _difference(settings, _MODEL, "model.")
        or _model_problem(model.get("vocab"), model.get("merges"))
    )


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> str | None:
    """Return the first field that differs; true and 1 do."""
    for name in sorted(found.keys() | wanted.keys()):
        one, other = (
            json.dumps(values[name], sort_keys=True) if name in values else "nothing" for values in (found, wanted)
        )
        if one != other:
            return f"{prefix}{ascii(name)[1:-1][:40]}: {other} expected, found {one[:80]}"
    return None


def _model_problem(vocabulary: Any, merges: Any) -> str | None:
    """Return what is wrong with a vocabulary and its merges, or None."""
    from tokenizers import pre_tokenizers  # noqa: PLC0415 - native, 70 ms

    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        return "model.vocab and model.merges: an object and a list expected"
    missing = len(alphabet - vocabulary.keys())
    if missing:
        return f"model.vocab: {missing} of the 256 bytes are not in it, so not every word can be spelled"
    numbers = vocabulary.values()
    if not all(type(number) is int for number in numbers) or sorted(numbers) != list(range(len(vocabulary))):
        return f"model.vocab: the numbers 0 to {len(vocabulary) - 1} expected, each once"
    made = set(alphabet)
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge  # versions before 0.20.1 wrote one text
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            return f"model.merges: pairs of subwords expected, found {ascii(merge)[:80]}"
        if not set(pair) <= made or "".join(pair) not in vocabulary:
            return f"model.merges: {ascii(pair)[:80]} joins or makes what is no subword"
        made.add("".join(pair))
    return (
        None if made == vocabulary.keys() else f"model.vocab: {len(vocabulary.keys() - made)} subwords no merge makes"
    )
