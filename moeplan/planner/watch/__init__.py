"""Production against a plan: sequential tests, daily patterns, what happened."""
