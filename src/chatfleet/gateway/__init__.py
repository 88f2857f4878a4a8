"""The endpoint that clients see: keys, CORS, models by name, answers passed on.

Imports dispatch, http, protocol, core.
"""
