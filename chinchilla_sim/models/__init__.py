"""Runnable built-in jobs and the digits they train on; imported only by name, never by a layer."""
