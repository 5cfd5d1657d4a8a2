"""How often the statistics are right, on simulated machines whose truth is known."""
