"""A light fake of Ollama on loopback: exact delays for benchmarks, faults for tests."""
