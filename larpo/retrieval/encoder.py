"""Dense retrieval (Figure 2a of the paper): a sentence encoder, whose unit vectors `larpo.retrieval.index` searches."""

import sys

import numpy as np

from larpo.config.sections import EncoderParams
from larpo.errors import ParameterError, at, one_line
from larpo.models.resolve import resolve


class Encoder:
    """A sentence-transformers model with its query and passage prefixes; unit vectors, so inner product is cosine.

    `key` of params.yaml is what errors name.
    """

    def __init__(self, params: EncoderParams, key: str = "retrieval: model"):
        from sentence_transformers import SentenceTransformer

        with at(key, "params.yaml"):
            self.checkpoint = resolve(params.model, params.revision)
            try:
                self.model = SentenceTransformer(
                    self.checkpoint.source,
                    trust_remote_code=False,
                    model_kwargs={"use_safetensors": True},
                    **self.checkpoint.options,
                )
            except Exception as error:  # noqa: BLE001 - as for every part of a checkpoint (larpo.models.load)
                raise ParameterError("", f"cannot load {params.model!r} ({one_line(error)[:160]})") from None
        self.model.max_seq_length = min(params.max_length, self._positions())
        self.params, self.cut = params, 0

    def _positions(self) -> int:
        """Tokens that the model can read, its markers included: beyond them it has no vectors, and would fail."""
        config = getattr(self.model[0], "auto_model", None)
        config = {} if config is None else config.config.to_dict()
        limit = config.get("max_position_embeddings") or config.get("n_positions") or sys.maxsize
        if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
            limit -= (config.get("pad_token_id") or 0) + 1  # their positions start behind the padding's
        return limit

    def passages(self, texts: list[str]) -> np.ndarray:
        """(n, d) float32 unit vectors."""
        return self._encode([self.params.passage_prefix + text for text in texts])

    def queries(self, texts: list[str]) -> np.ndarray:
        """(n, d) float32 unit vectors."""
        return self._encode([self.params.query_prefix + text for text in texts])

    def _encode(self, texts: list[str]) -> np.ndarray:
        """`cut` counts the texts whose end the model does not see."""
        lengths = self.model.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        self.cut += sum(len(ids) > self.model.max_seq_length for ids in lengths)
        vectors = self.model.encode(
            texts,
            batch_size=self.params.batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)
