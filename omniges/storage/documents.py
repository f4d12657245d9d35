"""Conversion of JSON objects of unknown origin to frozen dataclasses, with a check of every value.

The annotation of a field declares the valid values: ``Annotated[int, Range(1)]`` is a whole number of at least 1. A
key may be absent if its field has a default, because files of earlier versions may lack the key. A key that is not a
field is refused by `Document.read` and ignored by `Document.values`.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from omniges.errors import DataError, OmnigesError
from omniges.storage.files import is_sha256
from omniges.storage.redact import one_line

T = TypeVar("T")
LONGEST_TEXT: Final = 4096
"""Largest number of characters of a text in a document; equal to the limit of Linux for a path."""
_MOST: Final = sys.float_info.max
_MOST_SAID: Final = 1e10
"""Errors do not state the upper end of a range if it is at least this number."""
_MOST_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class Range:
    """Allowed range of a number, for ``Annotated``: at least `minimum`, at most `maximum`, greater than `above`."""

    minimum: float = -_MOST
    maximum: float = _MOST
    above: float = -math.inf

    def __contains__(self, value: float) -> bool:
        return self.minimum <= value <= self.maximum and value > self.above

    @property
    def words(self) -> str:
        """The range as text, such as " from 1 to 8"; empty if every number is allowed."""
        if self == Range():
            return ""
        lowest = f"above {_digits(self.above)}" if self.above > -math.inf else f"from {_digits(self.minimum)}"
        return f" {lowest}" + (f" to {_digits(self.maximum)}" if self.maximum < _MOST_SAID else "")


def _digits(number: float) -> str:
    """Return a number as text; a whole number below 1e10 has no ``.0``.

    Without this rule, ``Range(0.0)`` and ``Range(0)`` would have different texts in errors, although they are equal.
    `typing` caches annotations, so it may return either of two equal ranges.
    """
    return str(int(number)) if abs(number) < _MOST_SAID and number == int(number) else str(number)


@dataclass(frozen=True, slots=True)
class Is:
    """A check of a value, for ``Annotated``: a function that tests it, and a description of valid values for errors."""

    expected: str
    fits: Callable[[Any], bool]


Count = Annotated[int, Range(0, 1 << 60)]
"""A whole number from 0 to 2**60, such as a file size."""

Sha256 = Annotated[str, Is("a sha256 in lower-case hexadecimal digits", is_sha256)]


def shown(value: Any) -> str:
    """Return a JSON value as one line of JSON, cut to 60 characters."""
    return one_line(json.dumps(value, ensure_ascii=False, default=repr), _MOST_SHOWN)


class Document:
    """A JSON object whose values are read with a check of their type and range."""

    def __init__(
        self, found: Any, where: str, remedy: str, prefix: str = "", kind: type[OmnigesError] = DataError
    ) -> None:
        """Store the parsed JSON; refuse a value that is not an object.

        Args:
            found: The parsed JSON.
            where: Name of the file, for errors.
            remedy: Last part of each error: what to do about an invalid value.
            prefix: Keys that lead to the object inside the file, each followed by a dot, such as ``model.``; empty if
                the object is the whole file.
            kind: Class of the errors.

        Raises:
            OmnigesError: The value is not an object; the error has the class `kind`.
        """
        self.where, self.remedy, self.prefix, self._kind = where, remedy, prefix, kind
        if not isinstance(found, dict):
            raise self.fault("", shown(found), "an object")
        self.found: dict[str, Any] = found

    def fault(self, key: str, found: str, expected: str) -> OmnigesError:
        """Return the error for the value of a key.

        Args:
            key: The key; empty for the object itself.
            found: The value in words.
            expected: The values that are valid, in words.

        Returns:
            The error, which the caller raises.
        """
        name = one_line(f"{self.prefix}{key}".rstrip("."), 120)
        place = f"{name}: " if name else ""
        return self._kind(f"{self.where}: {place}expected {expected}, found {found}; {self.remedy}")

    def part(self, key: str) -> Document:
        """Return the value of a key, which must be a JSON object, as a `Document`."""
        return Document(self.value(key), self.where, self.remedy, f"{self.prefix}{key}.", self._kind)

    def value(self, key: str) -> Any:
        """Return the value of a key, of any type; refuse an object that lacks the key."""
        if key not in self.found:
            raise self.fault(key, "that it is missing", "this key")
        return self.found[key]

    def require_keys(self, keys: Collection[str]) -> None:
        """Refuse an object that lacks one of the keys."""
        for key in keys:
            self.value(key)

    def require_only(self, only: Mapping[str, Any]) -> None:
        """Refuse a setting whose value is not the only one that this program implements.

        Args:
            only: The implemented value of each setting, by key. A key that the object lacks is accepted.
        """
        for key, value in only.items():
            found = self.found.get(key, value)
            if found != value or isinstance(found, bool) != isinstance(value, bool):
                raise self.fault(key, shown(found), f"{shown(value)}, the only value that is implemented")

    def require_only_keys(self, known: Collection[str]) -> None:
        """Refuse keys that are not in `known`."""
        for key in sorted(self.found.keys() - set(known)):
            raise self.fault(key, f"it with the value {shown(self.found[key])}", "no key of this name")

    def require_known(self, known: Collection[str]) -> None:
        """Refuse unknown keys of a network's configuration, because they might change the results of the network.

        An unknown key with the value null is accepted.

        Args:
            known: Keys that the caller reads, and keys that have no effect.
        """
        for key in sorted(self.found.keys() - set(known)):
            if self.found[key] is not None:
                raise self.fault(
                    key,
                    f"it with the value {shown(self.found[key])}",
                    "no key of this name, because omniges does not use its value",
                )

    def read(self, kind: type[T]) -> T:
        """Convert the object to a dataclass; refuse a key that is not a field.

        Args:
            kind: Dataclass whose fields declare the keys, and the type and range of each value.

        Returns:
            The dataclass instance.

        Raises:
            OmnigesError: A key is unknown or absent, or a value has another type or is out of range.
        """
        self.require_only_keys({one.name for one in fields(kind)})  # type: ignore[arg-type]
        return self.values(kind)

    def given(self, kind: Any) -> dict[str, Any]:
        """Return the values of the object, checked by the fields of a dataclass; the object may lack any field.

        Args:
            kind: Dataclass whose fields declare the keys, and the type and range of each value.

        Returns:
            Checked values by field name, only for the keys that the object has.

        Raises:
            OmnigesError: A key is unknown, or a value has another type or is out of range.
        """
        hints = _hints(kind)
        self.require_only_keys(hints)
        return {name: self.typed(name, hints[name]) for name in self.found}

    def values(self, kind: type[T], **own: Any) -> T:
        """Convert the object to a dataclass; keys that are not fields are ignored.

        Args:
            kind: Dataclass whose fields declare the keys, and the type and range of each value.
            **own: Values of fields. They are used instead of the object's values.

        Returns:
            The dataclass instance.
        """
        hints = _hints(cast("Hashable", kind))
        for field in fields(kind):  # type: ignore[arg-type]
            absent = field.default is MISSING and field.default_factory is MISSING
            if field.name not in own and (absent or field.name in self.found):
                own[field.name] = self.typed(field.name, hints[field.name])
        try:
            return kind(**own)
        except OmnigesError as error:  # from the dataclass's `__post_init__`
            raise self._kind(f"{self.where}: {self.prefix}{error}; {self.remedy}") from error

    def typed(self, key: str, hint: Any) -> Any:
        """Return the value of a key, checked and converted to a type.

        Args:
            key: Key that must exist.
            hint: The type annotation of a dataclass's field.

        Returns:
            The value; a JSON list becomes a tuple.
        """
        return self._typed(key, hint, self.value(key))

    def _typed(self, key: str, hint: Any, value: Any) -> Any:
        kind, checks, optional = _parts(hint)
        found: Any
        if optional and value is None:
            return None
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            found = self._several(key, kind, value)
        elif get_origin(kind) is Mapping and isinstance(value, dict):
            found = self._mapping(key, kind, value)
        elif is_dataclass(kind) and isinstance(value, dict):
            part = Document(value, self.where, self.remedy, f"{self.prefix}{key}.", self._kind)
            found = part.read(cast("type[Any]", kind))
        elif _is_plain(kind, checks, value):
            found = kind(value) if kind in {float, Path} else value
        else:
            raise self.fault(key, shown(value), _words(hint))
        for check in checks:
            if isinstance(check, Is) and not check.fits(found):
                raise self.fault(key, shown(value), check.expected)
        return found

    def _several(self, key: str, kind: Any, value: Sequence[Any]) -> tuple[Any, ...]:
        kinds = get_args(kind)
        if kinds[1:] == (...,):
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise self.fault(key, shown(value), _words(kind))
        return tuple(self._typed(f"{key}[{k}]", one, value[k]) for k, one in enumerate(kinds))

    def _mapping(self, key: str, kind: Any, value: dict[str, Any]) -> dict[str, Any]:
        names, values = get_args(kind)
        for name in value:
            if not _is_plain(names, (), name):
                raise self.fault(f"{key}.{name}", "this key", _words(names))
        return {name: self._typed(f"{key}.{name}", values, one) for name, one in value.items()}


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _parts(hint: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """Split a type annotation into the plain type, its checks (`Range`, `Is`), and whether null is allowed too."""
    kind, checks, optional = hint, (), False
    while True:
        if get_origin(kind) is Annotated:
            kind, *more = get_args(kind)
            checks += tuple(more)
        elif get_origin(kind) in {Union, UnionType} and NoneType in get_args(kind):
            (kind,) = (one for one in get_args(kind) if one is not NoneType)
            optional = True
        else:
            return kind, checks, optional


def _is_plain(kind: Any, checks: Collection[Any], value: Any) -> bool:
    """Return whether a JSON value is valid for `kind`: Any, a text, path, number or boolean type, or a `Literal`.

    A number must be in every `Range` of `checks`, a text has at most `LONGEST_TEXT` characters, and a `Literal` allows
    only the values that it lists. For other types, the result is False.
    """
    if kind is Any:
        return True
    if get_origin(kind) is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(kind))
    if kind in {str, Path}:
        return isinstance(value, str) and len(value) <= LONGEST_TEXT
    if kind is float or kind is int:
        ranges = [check for check in checks if isinstance(check, Range)] or [Range()]
        number = type(value) is int or (kind is float and type(value) is float)
        return number and all(value in one for one in ranges)
    return kind is bool and isinstance(value, bool)


UNREAD: Final = frozenset(
    {
        *("architectures", "_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "auto_map"),
        *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "torchscript", "use_bfloat16"),
        *("is_decoder", "is_encoder_decoder", "chunk_size_feed_forward", "problem_type", "id2label", "label2id"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "tokenizer_class"),
        *(
            "initializer_range",
            "initializer_factor",
            "finetuning_task",
            "task_specific_params",
            "gradient_checkpointing",
        ),
        # keys for text generation and TensorFlow, which this package does not use
        *("max_length", "min_length", "do_sample", "num_beams", "num_beam_groups", "early_stopping", "temperature"),
        *("top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "diversity_penalty"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
        *("output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "prefix"),
        *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"),
        *("tf_legacy_loss", "tie_encoder_decoder"),
        # notes on how a file was made
        *("seed", "torch", "transformers", "diffusers", "parameters", "smallest_greedy_margin"),
    }
)
"""Keys in a config.json of transformers that do not affect a network's results at inference."""
_KINDS: Final[Mapping[Any, str]] = {
    int: "a whole number",
    float: "a number",
    str: f"a text of at most {LONGEST_TEXT} characters",
    Path: f"a path of at most {LONGEST_TEXT} characters",
    bool: "true or false",
    tuple: "a list",
    Mapping: "an object",
}


def _words(hint: Any) -> str:
    """Return a text for errors that describes the values that a type annotation allows."""
    kind, checks, optional = _parts(hint)
    origin = get_origin(kind)
    if origin is Literal:
        choices = get_args(kind)
        words = f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else shown(choices[0])
    elif origin is tuple and get_args(kind)[1:] != (...,):
        words = f"a list of {len(get_args(kind))} values"
    else:
        words = _KINDS.get(origin or kind, "an object")
    words += "".join(check.words for check in checks if isinstance(check, Range))
    return words + (" or null" if optional else "")
