"""The whole loop on one machine: two nodes, each an engine and an appliance, tuned, deployed to and verified."""
