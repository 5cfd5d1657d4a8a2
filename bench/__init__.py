"""Measuring tools of the fleet. Nothing in here is installed on a node."""
