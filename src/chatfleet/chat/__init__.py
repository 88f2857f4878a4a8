"""Between messages and token ids: tokenizers, templates and text that grows token by token."""
