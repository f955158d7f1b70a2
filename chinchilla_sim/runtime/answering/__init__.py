"""Requests that arrive at a plan, answered for real."""
