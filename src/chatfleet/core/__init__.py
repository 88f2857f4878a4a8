"""What every component shares: errors, settings and fleet types. Imports nothing of ours."""
