"""A small byte-level BPE tokenizer for the demo model, trained on the same text as the model."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

END_OF_TEXT = "<|endoftext|>"
# The demo model only ever saw Python, so a chat turn is written as Python: what the person says is
# a comment, two blank lines invite a definition, and what the model answers is the code below.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + '\\n\\n\\n' }}"
    "{% else %}"
    "{% for line in message['content'].splitlines() %}{{ '# ' + line + '\\n' }}{% endfor %}"
    "{{ '\\n\\n' }}"
    "{% endif %}"
    "{% endfor %}"
)


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Any:
    """Train a byte-level BPE of `vocab_size` entries; id 0 is the end-of-text mark."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path, context_tokens: int) -> None:
    """Write `tokenizer.json` and its config in the layout that `transformers` reads."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
