"""Settings of `omniges encode`. The module imports quickly, so that `omniges --help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from omniges.codecs.registry import CODECS
from omniges.errors import UsageFault
from omniges.options import about, check, declared, option, refuse_url
from omniges.shards.schema import WindowGrid

DEFAULT_MAX_LOST: Final = 0.01


def named_folder(flag: str, text: str) -> tuple[str, Path]:
    """Read a codec's name and folder from NAME=FOLDER.

    Args:
        flag: Name of the option, for errors.
        text: Value of the option: NAME=FOLDER.

    Returns:
        Name and folder.

    Raises:
        UsageFault: The text has another form, or the name is unknown.
    """
    name, equals, folder = text.partition("=")
    if not equals or not folder:
        raise UsageFault(f"{flag} {text}: expected NAME=FOLDER, where NAME is one of {', '.join(CODECS.names())}")
    CODECS.require(name, f"{flag} {text}: NAME {name!r}")
    refuse_url(flag, folder)
    return name, Path(folder)


def codec_option(help: str) -> tuple[tuple[str, Path], ...]:  # noqa: A002 - as `option` calls it
    """Declare the option ``--codec NAME=FOLDER`` for the codecs of a model.

    Args:
        help: Help text of the option.

    Returns:
        A dataclass field.
    """
    return option((), help, "--codec", metavar="NAME=FOLDER", parse=named_folder)


def t5_tokenizer_option(of: str = "a text codec") -> Path | None:
    """Declare the option for the folder of T5's tokenizer.

    Args:
        of: Name of the codec that needs the tokenizer, for the help text.

    Returns:
        A dataclass field. The default, None, means the tokenizer in the codec's folder.
    """
    return option(None, f"For {of}: folder of the T5 tokenizer.", shown="t5_tokenizer in the codec's folder")


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSettings:
    """All settings of `omniges encode`."""

    codecs: tuple[tuple[str, Path], ...] = field(
        metadata=about(
            f"Codec ({', '.join(CODECS.builtin)}, or another package's) and the folder of its files; may be repeated.",
            "--codec",
            was=("with",),
            metavar="NAME=FOLDER",
            parse=named_folder,
        )
    )
    shards: Path = option(Path("shards"), "Folder of shards.")
    output_dir: Path | None = option(
        None,
        "New folder for the shards with latents.",
        "--output-dir",
        "-o",
        was=("out",),
        shown="the shards themselves",
    )
    overwrite: bool = option(False, "Replace latents that were made with other weights or other windows.")
    window_ticks: int | None = option(
        None, "For a text codec: length of a window in ticks of 0.1 s.", minimum=1, shown="64"
    )
    stride_ticks: int | None = option(
        None,
        "For a text codec: ticks between window starts; must divide the window length.",
        minimum=1,
        shown="a quarter of a window",
    )
    t5_tokenizer: Path | None = t5_tokenizer_option()
    max_lost: float | None = option(
        None,
        "For a text codec: largest share of windows, 0 to 1, that may lose a part of their text; above it nothing is "
        "encoded.",
        minimum=0,
        maximum=1,
        shown=str(DEFAULT_MAX_LOST),
    )

    def __post_init__(self) -> None:
        """Refuse invalid settings; the error names the flag."""
        check(self)
        names = [name for name, _ in self.codecs]
        twice = [name for name in names if names.count(name) > 1]
        if not names or twice:
            found = f"{twice[0]} {names.count(twice[0])} times" if twice else "none"
            raise UsageFault(f"--codec: expected each codec once, found {found}; give one folder for each codec")

    @property
    def target(self) -> Path:
        """Folder to which the shards with latents are written; it may be the folder of the input."""
        return self.shards if self.output_dir is None else self.output_dir

    @property
    def of_text(self) -> tuple[str, ...]:
        """Flags that the user passed and that apply only to text codecs."""
        given = {
            "--window-ticks": self.window_ticks,
            "--stride-ticks": self.stride_ticks,
            "--t5-tokenizer": self.t5_tokenizer,
            "--max-lost": self.max_lost,
        }
        return tuple(flag for flag, value in given.items() if value is not None)

    def grid(self, default: WindowGrid) -> WindowGrid:
        """Return length and stride of the requested windows.

        The default stride is the largest divisor of the window length that is at most a quarter of this length. For a
        window of fewer than 4 ticks, it is 1 tick.

        Args:
            default: Windows of the codec, which give the default length.

        Returns:
            Length and stride in ticks.
        """
        window = default.window_ticks if self.window_ticks is None else self.window_ticks
        quarter = next((s for s in range(window // 4, 0, -1) if window % s == 0), 1)
        return WindowGrid(window, quarter if self.stride_ticks is None else self.stride_ticks)

    @property
    def in_place(self) -> bool:
        """True if the new shards replace the old shards in the same folder."""
        return self.target.resolve() == self.shards.resolve()
