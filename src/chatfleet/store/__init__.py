"""What is kept of completions for those who asked for that with `store`: a database, and what goes into it.

Imports protocol, core.
"""
