"""Keeps the processes of a fleet running: starts them, reads what they say, restarts and stops them.

Knows commands and their environments, not what is in them. Imports core.
"""
