"""What must hold on a GPU. Without one, or with `--device cpu`, each test's first case runs on the CPU."""
