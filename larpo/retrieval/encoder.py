"""Dense retrieval (Figure 2a of the paper): a sentence encoder, whose unit vectors `larpo.retrieval.index` searches."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from larpo.config.sections import EncoderParams
from larpo.errors import UserError, one_line
from larpo.models.packages import installed


def model_source(name: str, where: str = "retrieval: model") -> str:
    """What sentence-transformers loads: a hub id, a folder, or the folder inside an installed package (`pypi:NAME`).
    `where` is the key that errors name."""
    kind, _, package = name.partition(":")
    if kind != "pypi":
        if name.startswith((".", "/")) and not Path(name).is_dir():
            raise UserError(f"params.yaml: {where}: folder {name} not found")
        return name
    found = [f for f in installed(package, where)[1] if f.name == "modules.json"]
    if len(found) != 1:
        raise UserError(f"params.yaml: {where}: package {package!r} carries no sentence-transformers model")
    return str(found[0].parent)


class Encoder:
    """A sentence-transformers model with its query and passage prefixes; unit vectors, so inner product is cosine."""

    def __init__(self, params: EncoderParams, where: str = "retrieval: model"):
        from sentence_transformers import SentenceTransformer

        options = {"revision": params.revision} if params.revision else {}
        try:
            self.model = SentenceTransformer(
                model_source(params.model, where),
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
                **options,
            )
        except Exception as error:  # noqa: BLE001 - as for every checkpoint (larpo.models.load.UNUSABLE)
            reason = one_line(error)[:160] or type(error).__name__
            raise UserError(f"params.yaml: {where}: cannot load {params.model!r} ({reason})") from None
        self.model.max_seq_length = params.max_length
        self.params = params

    def passages(self, texts: list[str]) -> np.ndarray:
        """(n, d) float32 unit vectors."""
        return self._encode([self.params.passage_prefix + text for text in texts])

    def queries(self, texts: list[str]) -> np.ndarray:
        """(n, d) float32 unit vectors."""
        return self._encode([self.params.query_prefix + text for text in texts])

    def _encode(self, texts: list[str]) -> np.ndarray:
        vectors = self.model.encode(
            texts,
            batch_size=self.params.batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)
