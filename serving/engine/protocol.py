"""Requests of the HTTP API: OpenAI's chat and text completions with vLLM's extensions, strictly checked.

Everything in a request body is hostile. Each field is taken with its type and bounds; what is left over is unknown and
refused, so a misspelt parameter is never silently ignored. What OpenAI or vLLM know and this engine does not serve is
refused by name, unless its value changes nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from serving.engine.fields import BadRequest, Fields
from serving.engine.sampler import SamplingParams
from serving.engine.sequence import Ending

MAX_CHOICES = 16
MAX_TOP = 20
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKENS = 128
MAX_MESSAGES = 4096
MAX_BIASES = 1024
MAX_CALLER_CHARS = 256
MAX_COUNT = 1 << 30
DEFAULT_TOKENS = (
    1024  # of an answer whose limit is not said: its room is reserved, and all of it would be for nobody else
)
MAX_SECONDS = 86_400.0
ROLES = ("system", "developer", "user", "assistant", "tool")
# Parameters that are not served: the values that change nothing, and a sentence for the others.
UNSERVED: dict[str, tuple[tuple[Any, ...], str]] = {
    "allowed_token_ids": ((), "this engine chooses from all tokens; use logit_bias."),
    "audio": ((), "this engine answers in text only."),
    "bad_words": (([],), "this engine forbids no words; use logit_bias."),
    "cache_salt": ((), "this engine shares prompts between one caller's requests only."),
    "chat_template": ((), "this engine uses the model's own template."),
    "chat_template_kwargs": (({},), "this engine's templates take no arguments."),
    "documents": (([],), "this engine's templates take no documents."),
    "function_call": (("none", "auto"), "this engine calls no functions."),
    "functions": (([],), "this engine calls no functions."),
    "guided_json": ((), "this engine answers in free text only."),
    "kv_transfer_params": (({},), "this engine works alone."),
    "length_penalty": ((1,), "it belongs to beam search, which this engine does not do."),
    "logprob_token_ids": ((), "use logprobs with top_logprobs."),
    "modalities": ((["text"],), "this engine answers in text only."),
    "prediction": ((), "this engine takes no predicted outputs."),
    "priority": ((0,), "this engine gives every caller the same."),
    "prompt_embeds": ((), "this engine takes texts and token ids."),
    "repetition_detection": ((), "use repetition_penalty."),
    "response_format": (({"type": "text"},), "this engine answers in free text only."),
    "return_tokens_as_token_ids": ((False,), "use return_token_ids."),
    "skip_special_tokens": ((True,), "this engine's texts hold no special tokens; use return_token_ids."),
    "spaces_between_special_tokens": ((True,), "this engine's texts hold no special tokens."),
    "stream_interval": ((1,), "this engine sends each token when it is there."),
    "structured_outputs": ((), "this engine answers in free text only."),
    "suffix": (("",), "this engine continues texts, it does not fill gaps."),
    "thinking_token_budget": ((-1,), "this engine's models do not reason apart from their answer."),
    "truncation_side": (("left",), "this engine keeps the end of a prompt."),
    "use_beam_search": ((False,), "this engine samples."),
    "vllm_xargs": (({},), "this engine has no extensions."),
    "web_search_options": ((), "this engine searches nothing."),
}


@dataclass(frozen=True)
class Text:
    text: str
    add_special_tokens: bool


@dataclass(frozen=True)
class Conversation:
    messages: list[dict[str, Any]]
    is_open: bool  # it ends where the assistant's answer begins
    is_continued: bool  # it ends within the last message
    add_special_tokens: bool


Prompt = Text | Conversation | list[int]  # token ids


@dataclass(frozen=True)
class Sampling:
    """The part that chat and text completions share. `max_tokens` None: DEFAULT_TOKENS, or what there is room for."""

    max_tokens: int | None
    options: dict[str, Any]  # the other fields of SamplingParams
    min_tokens: int = 0

    def params(self, n_prompt: int, context: int, field: str = "prompt") -> SamplingParams:
        """Complete, for a prompt of n_prompt tokens in `field`. Raises BadRequest when prompt and answer do not fit."""
        room = context - n_prompt
        default = max(min(room, max(DEFAULT_TOKENS, self.min_tokens)), 1)
        n_asked = self.max_tokens if self.max_tokens is not None else default
        if n_asked > room:
            raise BadRequest(
                f"This model's context is {context} tokens; the prompt has {n_prompt} and the answer may have "
                f"{n_asked}. Shorten one of them.",
                field if room < 1 else "max_tokens",
                "context_length_exceeded",
            )
        if self.min_tokens > n_asked:
            raise BadRequest(f"min_tokens is {self.min_tokens}, max_tokens only {n_asked}.", "min_tokens")
        return SamplingParams(max_tokens=n_asked, **self.options)


@dataclass(frozen=True)
class Generation:
    """What to do with a prompt, whatever form it came in."""

    FIELD: ClassVar[str] = "prompt"  # where it stood
    model: str
    sampling: Sampling
    ending: Ending
    n: int
    is_stream: bool
    has_usage: bool  # a stream ends with a usage chunk
    has_running_usage: bool  # each chunk of a stream has the usage so far
    returns_ids: bool
    n_kept: int  # of the prompt's tokens, its last ones
    caller: str  # who asks, if they said so


@dataclass(frozen=True)
class ChatRequest(Generation):
    FIELD: ClassVar[str] = "messages"
    conversation: Conversation


@dataclass(frozen=True)
class CompletionRequest(Generation):
    prompts: list[Prompt]
    is_echo: bool  # the answer begins with the prompt
    is_only_prompt: bool  # and ends there


def parse_chat(body: Any, n_vocabulary: int) -> ChatRequest:
    """A /v1/chat/completions body. Raises BadRequest."""
    fields = Fields(body)
    conversation = _conversation(fields)
    max_tokens = fields.integer("max_tokens", None, 1, MAX_COUNT)
    max_tokens = fields.integer("max_completion_tokens", max_tokens, 1, MAX_COUNT)
    has_logprobs, n_top = fields.flag("logprobs"), fields.integer("top_logprobs", 0, 0, MAX_TOP)
    if n_top and not has_logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true.", "top_logprobs")
    fields.refuse("echo", (False,), "continue_final_message continues a message.")
    _refuse_tools(fields)
    generation = _generation(fields, max_tokens, n_top if has_logprobs else None, n_vocabulary)
    return ChatRequest(**generation, conversation=conversation)


def parse_completion(body: Any, n_vocabulary: int) -> CompletionRequest:
    """A /v1/completions body. Raises BadRequest."""
    fields = Fields(body)
    prompts = _prompts(fields.take("prompt"), n_vocabulary)
    add_special_tokens = fields.flag("add_special_tokens", default=True)
    is_echo = fields.flag("echo")
    max_tokens = fields.integer("max_tokens", 16, 0 if is_echo else 1, MAX_COUNT)
    n_top = fields.integer("logprobs", None, 0, MAX_TOP)
    generation = _generation(fields, max(max_tokens, 1), n_top, n_vocabulary)
    if is_echo and generation["is_stream"]:
        raise BadRequest("echo cannot be streamed.", "echo")
    if is_echo and n_top is not None:
        generation["sampling"].options["prompt_logprobs"] = n_top
    texts: list[Prompt] = [
        Text(prompt, add_special_tokens) if isinstance(prompt, str) else prompt for prompt in prompts
    ]
    return CompletionRequest(**generation, prompts=texts, is_echo=is_echo, is_only_prompt=max_tokens == 0)


@dataclass(frozen=True)
class TokenizeRequest:
    prompt: Prompt
    returns_strings: bool


def parse_tokenize(body: Any) -> TokenizeRequest:
    """A /tokenize body: a prompt or messages. Raises BadRequest."""
    fields = Fields(body)
    fields.take("model")  # all versions have one tokenizer
    returns_strings = fields.flag("return_token_strs")
    fields.refuse("tools", ([],), "this engine calls no tools.")
    for name in ("chat_template", "chat_template_kwargs"):
        fields.refuse(name, *UNSERVED[name])
    text = fields.take("prompt")
    if text is None:
        prompt: Prompt = _conversation(fields)
    elif isinstance(text, str):
        prompt = Text(text, fields.flag("add_special_tokens", default=True))
    else:
        raise BadRequest("prompt must be a text.", "prompt")
    fields.finish()
    return TokenizeRequest(prompt, returns_strings)


def parse_detokenize(body: Any, n_vocabulary: int) -> list[int]:
    """A /detokenize body: its token ids. Raises BadRequest."""
    fields = Fields(body)
    fields.take("model")
    ids = _token_ids(fields.take("tokens"), "tokens", n_vocabulary)
    fields.finish()
    return ids


def _conversation(fields: Fields) -> Conversation:
    messages = _messages(fields.take("messages"))
    is_continued = fields.flag("continue_final_message")
    is_open = fields.flag("add_generation_prompt", default=not is_continued)
    if is_continued and (is_open or messages[-1]["role"] != "assistant" or not messages[-1]["content"]):
        raise BadRequest("Only an assistant's message can be continued, without a generation prompt.", "messages")
    return Conversation(messages, is_open, is_continued, fields.flag("add_special_tokens"))


def _messages(value: Any) -> list[dict[str, Any]]:
    """[{role, content}], with content parts joined to one text. Raises BadRequest."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise BadRequest(f"messages must be a list of 1 to {MAX_MESSAGES} messages.", "messages")
    return [_message(item, f"messages.{i}") for i, item in enumerate(value)]


def _message(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict) or item.get("role") not in ROLES:
        raise BadRequest(f"{where} must be an object with a role: {', '.join(ROLES)}.", where)
    # Clients hand back an assistant's message with all its fields: those that say nothing are let through.
    known = ("role", "content", "name", "refusal")
    if unknown := sorted(key for key, value in item.items() if key not in known and value not in (None, [], {})):
        raise BadRequest(f"{where} has a field {unknown[0][:80]!r} that this engine does not know.", where)
    content = item.get("content")
    if isinstance(content, list) and content and all(_is_text_part(part) for part in content):
        content = "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadRequest(f"{where}.content must be a text or a list of text parts; images are not read.", where)
    return {"role": item["role"], "content": content}


def _refuse_tools(fields: Fields) -> None:
    """Tools may be named as long as none is to be called, as clients do that always name theirs."""
    tools, choice = fields.take("tools"), fields.take("tool_choice")
    if not isinstance(tools, list | None) or (tools and choice != "none"):
        raise BadRequest("This engine calls no tools; leave them out or set tool_choice to none.", "tools")
    if choice not in (None, "none", "auto"):
        raise BadRequest("This engine calls no tools; tool_choice may be none or auto.", "tool_choice")


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _generation(fields: Fields, max_tokens: int | None, n_top: int | None, n_vocabulary: int) -> dict[str, Any]:
    """The fields that chat and text completions share, as arguments of Generation; nothing may be left over."""
    for name, (neutral, sentence) in UNSERVED.items():
        fields.refuse(name, neutral, sentence)
    generation = {
        "model": fields.text("model"),
        **_stream(fields),
        "n": _n_choices(fields),
        "returns_ids": fields.flag("return_token_ids"),
        "n_kept": fields.integer("truncate_prompt_tokens", MAX_COUNT, 1, MAX_COUNT),
        "caller": fields.text("user", is_required=False)[:MAX_CALLER_CHARS],
        "ending": Ending(
            min_tokens=fields.integer("min_tokens", 0, 0, MAX_COUNT),
            includes_stop=fields.flag("include_stop_str_in_output"),
            seconds=fields.number("timeout_seconds", MAX_SECONDS, 0.001, MAX_SECONDS),
        ),
    }
    options = _options(fields, n_top, n_vocabulary)
    if generation["is_stream"] and options["prompt_logprobs"] is not None:
        raise BadRequest("prompt_logprobs cannot be streamed.", "prompt_logprobs")
    fields.finish()
    return {**generation, "sampling": Sampling(max_tokens, options, generation["ending"].min_tokens)}


def _stream(fields: Fields) -> dict[str, bool]:
    is_stream, options = fields.flag("stream"), Fields(fields.take_or("stream_options", {}), "stream_options")
    has_usage, has_running_usage = options.flag("include_usage"), options.flag("continuous_usage_stats")
    options.flag("include_obfuscation")  # against listeners on the way; this engine speaks to its gateway only
    options.finish()
    return {"is_stream": is_stream, "has_usage": has_usage, "has_running_usage": has_usage and has_running_usage}


def _n_choices(fields: Fields) -> int:
    n = fields.integer("n", 1, 1, MAX_CHOICES)
    if fields.integer("best_of", n, 1, MAX_CHOICES) != n:
        raise BadRequest("This engine returns every answer that it makes: best_of must be n.", "best_of")
    return n


def _options(fields: Fields, n_top: int | None, n_vocabulary: int) -> dict[str, Any]:
    """All fields of SamplingParams but max_tokens."""
    top_p = fields.number("top_p", 1.0, 0.0, 1.0)
    if top_p == 0:
        raise BadRequest("top_p must be greater than 0.", "top_p")
    return {
        "temperature": fields.number("temperature", 1.0, 0.0, 2.0),
        "top_p": top_p,
        "top_k": max(fields.integer("top_k", 0, -1, MAX_COUNT), 0),
        "min_p": fields.number("min_p", 0.0, 0.0, 1.0),
        "seed": fields.integer("seed", None, -(1 << 63), (1 << 63) - 1),
        "stop": _stops(fields.take_or("stop", [])),
        "stop_token_ids": _stop_tokens(fields.take_or("stop_token_ids", []), n_vocabulary),
        "ignore_eos": fields.flag("ignore_eos"),
        "presence_penalty": fields.number("presence_penalty", 0.0, -2.0, 2.0),
        "frequency_penalty": fields.number("frequency_penalty", 0.0, -2.0, 2.0),
        "repetition_penalty": fields.number("repetition_penalty", 1.0, 0.01, 10.0),
        "logit_bias": _logit_bias(fields.take("logit_bias"), n_vocabulary),
        "logprobs": n_top,
        "prompt_logprobs": fields.integer("prompt_logprobs", None, 0, MAX_TOP),
    }


def _prompts(value: Any, n_vocabulary: int) -> list[str | list[int]]:
    """One text, one list of token ids, or a list of either."""
    many = value if isinstance(value, list) and value and isinstance(value[0], (str, list)) else [value]
    if len(many) > MAX_CHOICES:
        raise BadRequest(f"prompt may hold at most {MAX_CHOICES} prompts.", "prompt")
    for prompt in many:
        if not isinstance(prompt, str):
            _token_ids(prompt, "prompt", n_vocabulary)
        if not prompt:
            raise BadRequest("prompt must not be empty.", "prompt")
    return many


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    is_list = isinstance(stops, list) and len(stops) <= MAX_STOPS
    if not is_list or not all(isinstance(stop, str) and 1 <= len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise BadRequest(f"stop must be a text or up to {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters.", "stop")
    return tuple(stops)


def _stop_tokens(value: Any, n_vocabulary: int) -> frozenset[int]:
    if isinstance(value, list) and len(value) > MAX_STOP_TOKENS:
        raise BadRequest(f"stop_token_ids may hold at most {MAX_STOP_TOKENS} token ids.", "stop_token_ids")
    return frozenset(_token_ids(value, "stop_token_ids", n_vocabulary))


def _token_ids(value: Any, name: str, n_vocabulary: int) -> list[int]:
    if not isinstance(value, list) or not all(type(t) is int and 0 <= t < n_vocabulary for t in value):
        raise BadRequest(f"{name} must be a text or token ids between 0 and {n_vocabulary - 1}.", name)
    return value


def _logit_bias(value: Any, n_vocabulary: int) -> dict[int, float]:
    """Token id (as JSON has keys: a text) to bias. Raises BadRequest."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise BadRequest(f"logit_bias must be an object with up to {MAX_BIASES} token ids.", "logit_bias")
    biases = {}
    for key, bias in value.items():
        is_token = key.isascii() and key.isdigit() and len(key) <= 9 and int(key) < n_vocabulary
        if not is_token or type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise BadRequest("logit_bias must map token ids to numbers between -100 and 100.", "logit_bias")
        biases[int(key)] = float(bias)
    return biases
