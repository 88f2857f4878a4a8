"""The OpenVINO engine: GGUF files and OpenVINO IR folders on CPUs and Intel GPUs.

Importing this package is cheap; `backend` imports OpenVINO, in the engine process alone.
"""
