"""`chatfleet doctor`: checks of any OpenAI-compatible server, over HTTP and by its answers alone."""
