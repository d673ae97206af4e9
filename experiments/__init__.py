"""Runs that take too long for a demo: each one command, each with a committed table."""
