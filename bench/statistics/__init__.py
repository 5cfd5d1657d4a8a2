"""What figures say, and how surely. Pure; knows nothing of nodes."""
