"""Which token ids does the model read, and how many may it add? Prompts against one model's limits.

Refuses what cannot be served before any worker hears of it: empty prompts, ids outside the
vocabulary, and more tokens than the context holds.
"""

import asyncio

from .api_errors import context_overflow, invalid
from .asks import Ask
from .models import ServedModel

INLINE_CHARACTERS_MAX = 4096  # a longer prompt is tokenized in a thread: it takes milliseconds

Ids = tuple[int, ...]


async def token_ids(ask: Ask, model: ServedModel) -> list[Ids]:
    """The token ids of every prompt; raises ApiError 400."""
    size = sum(len(prompt) for prompt in ask.prompts)
    size += sum(len(message["content"]) for message in ask.messages)
    if size <= INLINE_CHARACTERS_MAX:
        return _encode(ask, model)
    return await asyncio.to_thread(_encode, ask, model)


def token_limit(ask: Ask, model: ServedModel, prompt_tokens: int) -> int:
    """How many tokens may be generated; raises ApiError 400 when that does not fit the context."""
    left = model.context_tokens - prompt_tokens
    wanted = max(left, 1) if ask.max_tokens is None else ask.max_tokens
    if wanted > left:
        error = context_overflow(prompt_tokens, wanted, model.context_tokens)
        error.param = ask.prompt_name
        raise error
    return wanted


def _encode(ask: Ask, model: ServedModel) -> list[Ids]:
    text = model.text
    if ask.is_chat:
        try:
            prompts = [tuple(text.encode_chat(ask.messages))]
        except ValueError as error:
            raise invalid(str(error), ask.prompt_name) from error
    else:
        prompts = [
            tuple(text.encode(prompt)) if isinstance(prompt, str) else prompt
            for prompt in ask.prompts
        ]
    for ids in prompts:
        if not ids:
            raise invalid("the prompt is empty", ask.prompt_name)
        if max(ids) >= text.vocabulary:
            raise invalid(f"token ids must be below {text.vocabulary}", "prompt")
    if any(token >= text.vocabulary for token, _bias in ask.wishes.logit_bias):
        raise invalid(f"token ids must be below {text.vocabulary}", "logit_bias")
    return prompts
