"""Many plans: comparison, search, sweeps, sensitivity."""
