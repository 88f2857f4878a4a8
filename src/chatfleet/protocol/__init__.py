"""OpenAI's wire as pydantic models, one module per API. Imports nothing of ours.

Source: OpenAI's API reference; extensions keep vLLM's names and meaning.
"""
