"""Studies: many runs as one grid, their folders the only record of where each stands."""
