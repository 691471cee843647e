"""What parameters may not say: settings that libraries would take and that would let a checkpoint's code run, load
another model than the graph's, write outside data/ and scratch/, or put a key into a file.

`engine.options`, `trainer_options` and a judge's `options` are passed on as they are, apart from these.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from larpo.errors import nearest


def without(options: dict[str, Any], taken: Mapping[str, str]) -> dict[str, Any]:
    """`options` that are passed on as they are, refused where one is in `taken` (name → why it cannot be set)."""
    for name in options:
        if name in taken:
            raise ValueError(f"{name!r} cannot be set here: {taken[name]}")
    return options


def check_address(url: str | None) -> str | None:
    """A server's address as it may stand in a file: http(s), with a host, without a password."""
    if url is None:
        return url
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable, parts = False, None
    if not usable:
        raise ValueError("expected an address such as http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise ValueError("expected an address without a name and a password; a key belongs in the environment")
    return url


_CODE = "code of a checkpoint runs where policy.trust_remote_code says so, and nowhere else"
_PICKLE = "weights are read from safetensors alone, never from a pickle"
_POLICY = "the policy of the graph is what is loaded"
ENGINE_TAKEN = {
    "trust_remote_code": _CODE,
    "code_revision": _CODE,
    "auto_map": _CODE,
    "hf_overrides": _CODE,
    "worker_cls": _CODE,
    "worker_extension_cls": _CODE,
    "logits_processors": _CODE,
    "io_processor_plugin": _CODE,
    "use_safetensors": _PICKLE,
    "weights_only": _PICKLE,
    "load_format": _PICKLE,
    "pt_load_map_location": _PICKLE,
    "model": _POLICY,
    "tokenizer": _POLICY,
    "subfolder": _POLICY,
    "state_dict": _POLICY,
    "adapter_kwargs": _POLICY,
    "config": _POLICY,
    "gguf_file": _POLICY,
    "revision": _POLICY,
    "hf_config_path": _POLICY,
    "dtype": "engine.dtype says it",
    "logprobs_mode": "log-probabilities of the model itself are compared with the trainer's (docs/training.md)",
}
_SCRATCH = "a node writes into its scratch folder, and resumes from there"
_UPLOAD = "a node publishes to data/ and nowhere else"
TRAINER_TAKEN = {
    "output_dir": _SCRATCH,
    "logging_dir": _SCRATCH,
    "resume_from_checkpoint": _SCRATCH,
    "push_to_hub": _UPLOAD,
    "hub_token": _UPLOAD,
    "hub_model_id": _UPLOAD,
    "report_to": "curves go to data/ alone",
}
_MESSAGES = "a prompt is its messages, and ends where the assistant begins"
_TOKENS = "a prompt's text becomes its tokens, whole and as they are"
CHAT_TAKEN = {
    **dict.fromkeys(("conversation", "messages", "add_generation_prompt", "continue_final_message"), _MESSAGES),
    **dict.fromkeys(("tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length", "return_tensors"), _TOKENS),
    **dict.fromkeys(("return_dict", "return_assistant_tokens_mask"), _TOKENS),
    "chat_template": "the checkpoint's own is used; another one belongs into its folder as chat_template.jinja",
    "strftime_now": "policy.date says the day",
}
_KEY = "manifests record it, and a key belongs in the environment variable that api_key_env names"
JUDGE_TAKEN = {
    "extra_headers": _KEY,
    "api_key": _KEY,
    "model": "judges.NAME.model says it",
    "stream": "replies are kept whole",
}
JUDGE_FIELDS = (
    "max_tokens",
    "max_new_tokens",
    "max_tokens_to_sample",
    "temperature",
    "logprobs",
    "top_logprobs",
    "tools",
    "tool_choice",
    "seed",
)
"""Fields that benchmarks send to a judge beside model and messages."""


def check_fields(names: Iterable[str]) -> None:
    """Refuse a name that no benchmark sends."""
    for name in names:
        if name not in JUDGE_FIELDS:
            raise ValueError(f"no benchmark sends {name!r}{nearest(name, JUDGE_FIELDS)}")
