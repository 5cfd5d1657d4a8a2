"""Finding settings that suit a node, and proving that they do."""
