"""The report: one HTML file of all that was measured."""
