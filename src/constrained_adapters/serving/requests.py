"""The bodies of requests, as OpenAI's API has them; a setting that would have no effect is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from constrained_adapters.serving.sampling import Sampling

MAX_STOPS = 4
Name = Annotated[str, Field(min_length=1, max_length=200)]
StopString = Annotated[str, Field(min_length=1, max_length=200)]
Zero = Annotated[float, Field(ge=0, le=0)]
TokenId = Annotated[int, Field(ge=0)]


class Body(BaseModel):
    """A strict JSON body: no unknown field, no text where a number belongs, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """How a stream is told."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class TextFormat(Body):
    """The only format of answers."""

    type: Literal["text"]


class GenerationBody(Body):
    """What both kinds of completions have in common. Fields that take one value alone are not supported."""

    model: Name
    adapters: Annotated[dict[Name, float], Field(max_length=16)] | None = None
    """Weights of served domains, added to ``model: base``; an extension of OpenAI's API."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    ignore_eos: bool | None = None
    """Go on after an end token, as vLLM has it: an answer of a fixed length, for measurements."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, JsonValue], Field(max_length=0)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def num_choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def most_new_tokens(self) -> int | None:
        """The most tokens of an answer, if the request says so."""
        return self.max_tokens

    def num_logprobs(self) -> int | None:
        """How many alternatives are wanted for each token; None: no log-probabilities."""
        raise NotImplementedError

    def sampling(self) -> Sampling:
        """How tokens are chosen; OpenAI's defaults."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            top_logprobs=self.num_logprobs(),
        )


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One turn. An answer of ours can be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    refusal: None = None
    annotations: Annotated[list[JsonValue], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[JsonValue], Field(max_length=0)] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(GenerationBody):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: TextFormat | None = None
    tools: Annotated[list[JsonValue], Field(max_length=0)] | None = None
    tool_choice: Literal["none"] | None = None

    def most_new_tokens(self) -> int | None:
        """The newer of the two names counts."""
        return self.max_completion_tokens or self.max_tokens

    def num_logprobs(self) -> int | None:
        """``top_logprobs`` counts only with ``logprobs``."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def question(self) -> str:
        """The last turn of the user, by which a domain is chosen."""
        return next((each.text for each in reversed(self.messages) if each.role == "user"), "")

    def turns(self) -> list[dict[str, str]]:
        """The conversation as chat templates take it."""
        return [
            {"role": "system" if each.role == "developer" else each.role, "content": each.text}
            for each in self.messages
        ]


class CompletionRequest(GenerationBody):
    """``POST /v1/completions``."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=128)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=128)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None

    def num_logprobs(self) -> int | None:
        """The number itself."""
        return self.logprobs

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, one or more, as texts or as token ids."""
        prompt: Any = self.prompt
        single = isinstance(prompt, str) or isinstance(prompt[0], int)
        return [prompt] if single else prompt


class LoadAdapterRequest(Body):
    """``POST /v1/load_lora_adapter``, as vLLM names it."""

    lora_name: Name
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool = False


class UnloadAdapterRequest(Body):
    """``POST /v1/unload_lora_adapter``, as vLLM names it."""

    lora_name: Name
    lora_int_id: int | None = None
