"""Runs that take too long for a demo: one command each, and a committed table."""
