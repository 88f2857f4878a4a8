"""Requests to models, taken below ASGI and passed to workers. Everything else of the gateway is a FastAPI app."""
