"""What must hold on a GPU. Skipped without one; `--device cpu` runs what has a CPU form, on the CPU."""
