"""What a component measures of itself, and how it tells Prometheus. Nothing here knows the fleet or the API."""
