"""Studies: many runs as one grid, kept by Optuna, and the tables, curves and pictures made of them."""
