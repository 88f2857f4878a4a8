"""A worker: one engine, one or more model names, OpenAI's API."""
