"""The Tidemark warehouse: load, build, gate and forget."""
