"""What people type: each command parses, builds, runs and closes."""
