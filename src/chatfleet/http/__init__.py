"""What every HTTP server of ours shares: bodies, errors, request ids, event streams. Imports core, protocol."""
