"""Configuration of OmniFlow's text VAE, and a check that it fits the tensors.

The configuration is an ordinary LLaMA configuration with an entry ``vae_config``. The T5 encoder is that of
flan-T5-large, unless an entry ``t5`` gives other sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Final, Literal, TypeVar

from omniges.errors import DataError
from omniges.storage.documents import UNREAD, Document, Range, shown

Size = Annotated[int, Range(1, (1 << 31) - 1)]
TokenId = Annotated[int, Range(0, (1 << 31) - 1)]
Positive = Annotated[float, Range(above=0)]
NormType = Literal["layer_norm", "rms_norm"]
QFORMER_HEADS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeConfig:
    """The entry ``vae_config``; the defaults apply if the entry is missing."""

    prompt_size: Size = 1024
    """Width of the T5 features."""
    vae_dim: Size = 1536
    """Width of a latent."""
    vae_hidden_size: Size = 1536
    """Width of the Q-Former."""
    n_tokens: Size = 32
    """Number of latents of a text."""
    pre_norm: bool = False
    """True: the norm precedes the projection to latents. False: the norm follows the projection."""
    norm_type: NormType = "layer_norm"
    vae_scale: Positive = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaSizes:
    """Settings in a LLaMA configuration that the computation needs."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    vocab_size: Size
    max_position_embeddings: Size
    bos_token_id: TokenId
    eos_token_id: TokenId
    rms_norm_eps: Positive
    rope_theta: Positive


@dataclass(frozen=True, slots=True, kw_only=True)
class T5Sizes:
    """Sizes of a T5 encoder; the defaults are those of flan-T5-large."""

    vocab_size: Size = 32_128
    d_model: Size = 1024
    d_kv: Size = 64
    num_heads: Size = 16
    d_ff: Size = 2816
    num_layers: Size = 24
    relative_attention_num_buckets: Size = 32


Sizes = TypeVar("Sizes", VaeConfig, LlamaSizes, T5Sizes)
_REMEDY: Final = "give the text VAE's own config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextVaeConfig:
    """Complete configuration of a text VAE."""

    vae: VaeConfig
    llama: LlamaSizes
    t5: T5Sizes


def text_vae_config(document: Any, where: str) -> TextVaeConfig:
    """Read the configuration from a JSON document.

    Args:
        document: Parsed content of config.json.
        where: Name of the file, for errors.

    Returns:
        The configuration.

    Raises:
        DataError: A key is missing or has an unsupported value.
    """
    found = Document(document, where, _REMEDY)
    vae = VaeConfig()
    if "vae_config" in found.found:
        entry = found.part("vae_config")
        entry.require_keys(_names(VaeConfig))
        vae = entry.read(VaeConfig)
    llama = _llama(found)
    t5 = T5Sizes()
    if "t5" in found.found:
        encoder = found.part("t5")
        encoder.require_only(_ONLY_T5)
        encoder.require_keys(_names(T5Sizes))
        t5 = encoder.values(T5Sizes)
        encoder.require_known({*_ONLY_T5, *_names(T5Sizes), *_UNREAD_T5, *UNREAD})
    if "qformer" in found.found:
        only = {**QFORMER, "hidden_size": vae.vae_hidden_size, "encoder_hidden_size": vae.prompt_size}
        former = found.part("qformer")
        former.require_only(only | {"position_embedding_type": "absolute"})
        former.require_known({*only, *_UNREAD_QFORMER, *UNREAD})
    if vae.vae_hidden_size % QFORMER_HEADS:
        raise found.fault("vae_config.vae_hidden_size", str(vae.vae_hidden_size), f"a multiple of {QFORMER_HEADS}")
    return TextVaeConfig(vae=vae, llama=llama, t5=t5)


_ONLY: Final[Mapping[str, Any]] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "partial_rotary_factor": 1.0,
    "pretraining_tp": 1,
}
"""Keys of a LLaMA configuration that must have their default value."""
_ONLY_T5: Final[Mapping[str, Any]] = {
    "model_type": "t5",
    "feed_forward_proj": "gated-gelu",
    "is_gated_act": True,
    "dense_act_fn": "gelu_new",
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
"""Keys of a T5 configuration that must have the value of flan-T5."""
_UNREAD_LLAMA: Final = frozenset(
    {"vae_config", "t5", "qformer", "rope_scaling", "rope_parameters", "rope_theta", "head_dim", "attention_dropout"}
)
"""Other keys that a LLaMA configuration may have: entries that are read separately, and dropout."""
_UNREAD_T5: Final = frozenset(
    {"dropout_rate", "classifier_dropout", "n_positions", "output_past", "num_decoder_layers", "tie_word_embeddings"}
    | {"scale_decoder_outputs"}
)
"""Keys of a T5 configuration that have no effect: dropout, and settings of the decoder, which is not used."""
_UNREAD_QFORMER: Final = frozenset(
    {"model_type", "attention_probs_dropout_prob", "hidden_dropout_prob", "vocab_size", "max_position_embeddings"}
    | {"position_embedding_type", "query_length", "add_cross_attention", "type_vocab_size"}
)
"""Keys of a Q-Former configuration that have no effect: dropout, and settings of word embeddings. The Q-Former has no
word embeddings, because its inputs are learned queries."""
QFORMER: Final[Mapping[str, Any]] = {
    "num_hidden_layers": 6,
    "num_attention_heads": QFORMER_HEADS,
    "intermediate_size": 3072,
    "cross_attention_frequency": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
"""Settings of the Q-Former that must have these values."""


def _names(sizes: type[Sizes]) -> set[str]:
    return {field.name for field in fields(sizes)}


def _llama(document: Document) -> LlamaSizes:
    document.require_only(_ONLY)
    sizes = document.values(LlamaSizes, rope_theta=_rope_theta(document))
    document.require_known({*_ONLY, *_names(LlamaSizes), *_UNREAD_LLAMA, *UNREAD})
    heads = sizes.num_attention_heads
    if sizes.hidden_size % (2 * heads) or heads % sizes.num_key_value_heads:
        raise document.fault("num_attention_heads", str(heads), "heads of even width that the key heads divide")
    if document.found.get("head_dim") not in {None, sizes.hidden_size // heads}:
        raise document.fault("head_dim", shown(document.found["head_dim"]), "hidden_size / num_attention_heads")
    if max(sizes.bos_token_id, sizes.eos_token_id) >= sizes.vocab_size:
        raise document.fault("vocab_size", str(sizes.vocab_size), "room for the begin and the end token")
    return sizes


def _rope_theta(document: Document) -> float:
    """Return the base of the rotary positions from ``rope_theta``, or from ``rope_parameters`` of transformers 5."""
    for key in ("rope_scaling", "rope_parameters"):
        if document.found.get(key) is not None:
            part = document.part(key).found
            if part.get("rope_type", part.get("type", "default")) != "default":
                raise document.fault(key, shown(part), "rotary positions without scaling")
    if "rope_theta" not in document.found and document.found.get("rope_parameters") is not None:
        document = document.part("rope_parameters")
    theta: float = document.typed("rope_theta", Positive)
    return theta


def require_agreement(config: TextVaeConfig, shapes: Mapping[str, Sequence[int]], where: str, weights: str) -> None:
    """Raise DataError if a size in a configuration differs from the shape of a tensor.

    If a size is wrong, many tensors seem to have wrong shapes. Therefore, this error names the key of the size. The
    caller checks that every tensor exists and has the right shape.

    Args:
        config: The configuration.
        shapes: Shape of each tensor by name.
        where: Name of the configuration's file, for errors.
        weights: Name of the weights' file, for errors.

    Raises:
        DataError: A size differs from the shape of a tensor.
    """
    vae, llama, t5 = config.vae, config.llama, config.t5
    for key, layers in (("num_hidden_layers", llama.num_hidden_layers), ("t5.num_layers", t5.num_layers)):
        if layers > len(shapes):  # a wrong number must not build a huge network
            raise DataError(
                f"{where}: expected {key} as in {weights} ({len(shapes)} tensors), found {layers}; give the "
                "configuration that belongs to the weights"
            )
    sizes = (
        ("vae_config.n_tokens", vae.n_tokens, "query", 1),
        ("vae_config.vae_hidden_size", vae.vae_hidden_size, "query", 2),
        ("vae_config.vae_dim", vae.vae_dim, "vae_proj.bias", 0),
        ("vae_config.prompt_size", vae.prompt_size, "encoder.encoder.final_layer_norm.weight", 0),
        ("hidden_size", llama.hidden_size, "model.embed_tokens.weight", 1),
        ("vocab_size", llama.vocab_size, "model.embed_tokens.weight", 0),
        ("intermediate_size", llama.intermediate_size, "model.layers.0.mlp.gate_proj.weight", 0),
    )
    twice: list[tuple[str, object, object, str]] = []  # key, its value, value in a tensor, name of the tensor
    for key, said, name, axis in sizes:
        if len(shapes.get(name, ())) > axis:
            size = shapes[name][axis]
            twice.append((key, said, size // 2 if name == "vae_proj.bias" else size, name))  # means and log variances
    encoder = "the T5 encoder (its entry t5, or flan-T5-large)"
    twice.append(("vae_config.prompt_size", vae.prompt_size, t5.d_model, encoder))
    norm = shapes.get("q_norm.weight")
    if norm is not None and vae.norm_type == "rms_norm" and vae.vae_dim != vae.vae_hidden_size:
        normed = tuple(norm) == (vae.vae_hidden_size,)
        twice.append(("vae_config.pre_norm", vae.pre_norm, normed, "q_norm.weight"))
    for key, own, found, name in twice:
        if own != found:
            raise DataError(
                f"{where}: expected {key} {found} as in {name} of {weights}, found {own}; give the configuration "
                "that belongs to the weights"
            )
