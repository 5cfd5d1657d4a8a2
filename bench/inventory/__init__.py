"""The inventory: its nodes as Ansible sees them, and the one file in it that is the machine's, tuned.yml."""
