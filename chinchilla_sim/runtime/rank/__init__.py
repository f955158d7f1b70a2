"""One rank's whole run: optimizer steps and epochs."""
