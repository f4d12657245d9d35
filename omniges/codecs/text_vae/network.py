"""OmniFlow's text VAE (Li et al. 2024). It encodes a text's T5 features as latents; LLaMA generates text from latents.

Parameters have the names of the published checkpoints, without the prefix ``text_decoder.``. The text VAE is frozen: it
is always in evaluation mode, and its parameters have no gradients.

Shape letters: B batch, L tokens of a text, N latents of a text, V width of a latent, E width of the T5 features,
W tokens in LLaMA's vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from omniges.codecs.base import BOTH_ENDS, End, add_to_fingerprint
from omniges.codecs.text_vae.config import QFORMER, LlamaSizes, T5Sizes, TextVaeConfig, VaeConfig
from omniges.codecs.text_vae.tokenizers import IGNORED
from omniges.errors import DataError, first_of, needs
from omniges.storage.files import canonical_json
from omniges.storage.tensors import require_finite

if TYPE_CHECKING:
    from transformers import Blip2QFormerModel, LlamaModel, T5EncoderModel


MAX_LENGTH: Final = 256
"""Maximum number of tokens of a generated text, including one begin token for each latent and one for the text."""
_LEGACY_WIDTH: Final = 1536  # text VAEs with latents of this width encode the empty text like any text
_SAMPLING: Final = 0.001
_REMEDY: Final = "give the complete text VAE that belongs to this configuration"
_NETS: Final[Mapping[End, tuple[str, ...]]] = {
    "encode": ("query", "q_norm", "qformer", "vae_proj", "encoder"),
    "decode": ("model", "lm_head", "input_proj"),
}
_TABLE, _TABLE_AGAIN = "encoder.shared.weight", "encoder.encoder.embed_tokens.weight"  # one tensor, two names


class TextVae(nn.Module):
    """A frozen text VAE. The constructor sets random weights; `of_tensors` sets given weights.

    `named_parameters` returns the parameters in the order of the published implementation. The order matters, because
    that implementation saves EMA weights as a list without names.
    The constructor raises `EnvironmentFault` if transformers is not installed.
    """

    def __init__(self, config: TextVaeConfig) -> None:
        super().__init__()
        vae = config.vae
        self.config = config
        self.ends = BOTH_ENDS
        self.fingerprint: str | None = None
        """sha256 of configuration and all weights in the file, even if not all are kept; None for random weights."""
        self.query = nn.Parameter(torch.zeros(1, vae.n_tokens, vae.vae_hidden_size))
        self.model = _llama(config.llama)
        self.lm_head = nn.Linear(config.llama.hidden_size, config.llama.vocab_size, bias=False)
        normed = vae.vae_hidden_size if vae.pre_norm else vae.vae_dim
        self.q_norm = (
            nn.RMSNorm(normed, eps=1e-6)
            if vae.norm_type == "rms_norm"
            else nn.LayerNorm(normed, eps=1e-5, elementwise_affine=False)
        )
        self.qformer = _qformer(vae)
        self.vae_proj = nn.Linear(vae.vae_hidden_size, 2 * vae.vae_dim)
        self.input_proj = (
            nn.Identity()
            if vae.vae_dim == config.llama.hidden_size
            else nn.Linear(vae.vae_dim, config.llama.hidden_size)
        )
        self.encoder = _t5(config.t5)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Do nothing: the text VAE stays in evaluation mode, also inside a model that is trained."""
        del mode
        return super().train(False)

    @classmethod
    def of_tensors(
        cls,
        config: TextVaeConfig,
        tensors: Mapping[str, Tensor],
        where: str,
        ends: frozenset[End] = BOTH_ENDS,
        prefix: str = "",
    ) -> Self:
        """Build a text VAE from tensors, as float32 copies.

        All tensors are checked and added to the fingerprint one at a time, even those for a direction that is not
        needed. T5's embedding table may be stored under one of its two names or under both.

        Args:
            config: Sizes of the text VAE.
            tensors: Tensors by name.
            where: Name of the file, for errors.
            ends: Directions that are needed. Encoding uses T5 and the Q-Former, decoding uses LLaMA. Networks that are
                not needed are removed.
            prefix: Prefix of the names of the text VAE's tensors; tensors without it are ignored.

        Returns:
            The text VAE, on the CPU.

        Raises:
            DataError: A tensor is missing, unknown or of another shape, or has NaN or infinite values.
        """
        with torch.device("meta"):
            found = cls(config)
        expected = found.state_dict()
        stored = _stored_names(tensors, prefix, expected, where)
        found.ends = ends
        for end in BOTH_ENDS - ends:
            for name in _NETS[end]:
                delattr(found, name)
        kept = set(found.state_dict())
        digest = hashlib.sha256(canonical_json(asdict(config)))
        weights = {}
        for name in sorted(expected.keys() - {_TABLE_AGAIN}):  # `_stored_names` compared both tables
            tensor = tensors[stored[name]]
            if tensor.shape != expected[name].shape or not tensor.is_floating_point():
                raise DataError(
                    f"{where}: {name}: expected floating point of shape {list(expected[name].shape)}, found "
                    f"{tensor.dtype} of shape {list(tensor.shape)}; {_REMEDY}"
                )
            require_finite(name, tensor, where)
            values = tensor.to(torch.float32, copy=name in kept)
            add_to_fingerprint(digest, name, values)
            if name in kept:
                weights[name] = values
        if "encode" in ends:
            weights[_TABLE_AGAIN] = weights[_TABLE]
        found.load_state_dict(weights, assign=True)
        if "encode" in ends:
            found.encoder.encoder.embed_tokens.weight = found.encoder.shared.weight  # one parameter, two names
        if "decode" in ends:
            found.model.rotary_emb = type(found.model.rotary_emb)(config=found.model.config)  # is computed, not loaded
        found.fingerprint = digest.hexdigest()
        return found.eval()

    def _require(self, end: End) -> None:
        if end not in self.ends:
            raise RuntimeError(f"expected the networks that {end}, found a text VAE that was loaded without them")

    @torch.no_grad()
    def features(self, ids: Tensor) -> Tensor:
        """Return the T5 features (B, L, E) of tokens (B, L). Padding is not masked in the attention."""
        result: Tensor = self.encoder(input_ids=ids).last_hidden_state
        return result

    @torch.no_grad()
    def gathered(self, ids: Tensor, empty: Tensor) -> Tensor:
        """Return the Q-Former's outputs for T5 tokens; the method `latents` projects them to latents.

        The Q-Former reads T5 features that are standardised for each token. The features of an empty text are zero,
        except in text VAEs with latents of width 1536.

        Args:
            ids: T5 tokens (B, L).
            empty: Flags (B,) bool; True for an empty text.

        Returns:
            Outputs (B, N, hidden size of the Q-Former).
        """
        self._require("encode")
        features = standardised(self.features(ids))
        if self.config.vae.vae_dim != _LEGACY_WIDTH:
            features = features * ~empty[:, None, None]
        queries = self.query.expand(len(ids), -1, -1)
        result: Tensor = self.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state
        return result

    @torch.no_grad()
    def latents(self, ids: Tensor, empty: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Return latents of T5 tokens.

        Args:
            ids: T5 tokens (B, L).
            empty: Flags (B,) bool; True for an empty text.
            uniform: Uniform noise (B, N, V) in [0, 1). It is multiplied by 0.001 and added to the mean, as in
                OmniFlow's training. None adds no noise.

        Returns:
            Latents (B, N, V).
        """
        vae = self.config.vae
        gathered = self.gathered(ids, empty)
        projected = self.vae_proj(self.q_norm(gathered) if vae.pre_norm else gathered)
        mean: Tensor = projected[..., : vae.vae_dim]  # the other half, a log variance, is never used
        mean = mean if vae.pre_norm else self.q_norm(mean)
        return (mean if uniform is None else mean + _SAMPLING * uniform) * vae.vae_scale

    def prefix(self, latents: Tensor) -> Tensor:
        """Convert latents (B, N, V) to input embeddings of LLaMA (B, N, hidden size of LLaMA)."""
        self._require("decode")
        result: Tensor = self.input_proj(latents / self.config.vae.vae_scale)
        return result

    def logits(self, latents: Tensor, ids: Tensor) -> Tensor:
        """Return the logits of the token that follows each token of known texts.

        The embeddings of the latents come before the tokens. Gradients flow into the latents. Padding is on the right.
        The padding is not masked, because no earlier token attends to it.

        Args:
            latents: Latents (B, N, V).
            ids: LLaMA tokens (B, L).

        Returns:
            Logits (B, L, W).
        """
        prefix = self.prefix(latents)
        inputs = torch.cat([prefix, self.model.embed_tokens(ids)], dim=1)
        hidden = self.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        result: Tensor = self.lm_head(hidden[:, prefix.shape[1] :])
        return result

    @torch.no_grad()
    def generated(self, latents: Tensor, max_length: int = MAX_LENGTH) -> Tensor:
        """Generate texts from latents by greedy search, one token at a time.

        The first N + 1 tokens of a text are begin tokens: one for each latent and one for the text. After the end of a
        text, the remaining tokens are end tokens. Generation stops when all texts have ended.

        Args:
            latents: Latents (B, N, V).
            max_length: Maximum number of tokens of a text, including the begin tokens.

        Returns:
            Tokens (B, at most max_length) int64.
        """
        from transformers import DynamicCache  # noqa: PLC0415 - optional, and slow to import

        begin, end = self.config.llama.bos_token_id, self.config.llama.eos_token_id
        ids = torch.full((len(latents), latents.shape[1] + 1), begin, device=latents.device)
        inputs = torch.cat([self.prefix(latents), self.model.embed_tokens(ids[:, -1:])], dim=1)
        cache = DynamicCache(config=self.model.config)
        ended = torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
        while ids.shape[1] < max_length and not ended.all():
            hidden = self.model(inputs_embeds=inputs, cache=cache, use_cache=True).last_hidden_state
            likeliest = self.lm_head(hidden[:, -1]).argmax(-1).masked_fill(ended, end)
            ended |= likeliest == end
            ids = torch.cat([ids, likeliest[:, None]], dim=1)
            inputs = self.model.embed_tokens(likeliest[:, None])
        return ids


def standardised(features: Tensor) -> Tensor:
    """Scale the features (B, L, E) of each token to mean 0 and standard deviation 1 (unbiased estimate)."""
    mean, std = features.mean(-1, keepdim=True), features.std(-1, keepdim=True)
    return (features - mean) / (std + 1e-9)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each token after the first; 0 where the label is −100 (`IGNORED`).

    The loss of a batch is the sum of these losses, divided by the number of labels that are not −100.

    Args:
        logits: Logits (B, L, W).
        labels: Labels (B, L).

    Returns:
        Losses (B, L − 1).
    """
    shifted = logits[:, :-1].flatten(0, 1).float()
    losses = functional.cross_entropy(shifted, labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none")
    return losses.reshape(len(labels), -1)


def _llama(sizes: LlamaSizes) -> LlamaModel:
    with needs("text-vae", "the text VAE"):
        from transformers import LlamaConfig, LlamaModel  # noqa: PLC0415 - optional, and slow to import
    values = asdict(sizes)
    rotary = {"rope_type": "default", "rope_theta": values.pop("rope_theta")}
    return LlamaModel(LlamaConfig(**values, rope_parameters=rotary))


def _t5(sizes: T5Sizes) -> T5EncoderModel:
    """Create a flan-T5 encoder of given sizes. The other settings are the same in all flan-T5 models."""
    from transformers import T5Config, T5EncoderModel  # noqa: PLC0415 - optional, and slow to import

    config = T5Config(
        **asdict(sizes),
        feed_forward_proj="gated-gelu",
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
        use_cache=False,
    )
    return T5EncoderModel(config)


def _qformer(vae: VaeConfig) -> Blip2QFormerModel:
    """Create BLIP-2's Q-Former (J. Li et al. 2023) with 6 layers; every second layer attends to the T5 features.

    Its inputs are learned queries only, not text tokens.
    """
    from transformers import Blip2QFormerConfig, Blip2QFormerModel  # noqa: PLC0415 - optional, and slow to import

    config = Blip2QFormerConfig(hidden_size=vae.vae_hidden_size, encoder_hidden_size=vae.prompt_size, **QFORMER)
    return Blip2QFormerModel(config)


def _stored_names(tensors: Mapping[str, Tensor], prefix: str, expected: Iterable[str], where: str) -> dict[str, str]:
    """Return a mapping from the name of each weight, without the prefix, to the weight's name in the file.

    T5's embedding table has two names. The file may contain the table under one name or under both.

    Raises `DataError` if a weight is missing or unknown, or if the file contains two tables that differ.
    """
    found = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    present = [found[name] for name in (_TABLE, _TABLE_AGAIN) if name in found]
    if len(present) == 2:
        one, other = (tensors[name] for name in present)
        if one.dtype != other.dtype or not torch.equal(one, other):
            raise DataError(
                f"{where}: expected {_TABLE} and {_TABLE_AGAIN} to be equal, found a difference; download the "
                "file again"
            )
    if present:
        found[_TABLE] = found[_TABLE_AGAIN] = present[0]
    for kind, names in (("missing", set(expected) - found.keys()), ("unknown", found.keys() - set(expected))):
        if names:
            raise DataError(
                f"{where}: expected exactly the tensors of the text VAE, found {len(names)} {kind} "
                f"({first_of(sorted(names), 3)}); {_REMEDY}"
            )
    return found
