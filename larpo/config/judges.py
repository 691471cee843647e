"""The section `judges` of params.yaml."""

from typing import Any

from pydantic import Field, field_validator

from larpo.config.options import JUDGE_TAKEN, check_address, check_fields, without
from larpo.config.sections import Section


class JudgeParams(Section):
    """A language model behind an OpenAI-compatible server that judges outputs."""

    model: str = Field(description="the name that the server knows")
    base_url: str | None = Field(None, description="such as http://127.0.0.1:8000/v1; null: OpenAI's own")
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable with the key; on loopback none")
    concurrency: int = Field(8, ge=1, description="requests in flight")
    attempts: int = Field(12, ge=1, description="tries per request, with growing pauses: about a minute")
    timeout: float = Field(120, gt=0, description="seconds per try")
    options: dict[str, Any] = Field({}, description="further fields of each request, as they are")
    drop: list[str] = Field([], description="fields that benchmarks send and this server does not take: left out")
    rename: dict[str, str] = Field(
        {}, description="such fields under the name that it takes: `{max_tokens: max_completion_tokens}`"
    )

    @field_validator("drop")
    @classmethod
    def drops_what_is_sent(cls, names: list[str]) -> list[str]:
        check_fields(names)
        return names

    @field_validator("rename")
    @classmethod
    def renames_what_is_sent(cls, names: dict[str, str]) -> dict[str, str]:
        check_fields(names)
        without(dict.fromkeys(names.values()), JUDGE_TAKEN | {"messages": "the benchmark's prompt"})
        if len(set(names.values())) < len(names):
            raise ValueError("two fields get the same name")
        return names

    @field_validator("base_url")
    @classmethod
    def is_an_address_without_a_password(cls, url: str | None) -> str | None:
        return check_address(url)

    @field_validator("options")
    @classmethod
    def holds_no_key(cls, options: dict[str, Any]) -> dict[str, Any]:
        return without(options, JUDGE_TAKEN)
