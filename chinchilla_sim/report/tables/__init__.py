"""Tables of everything that is told, for terminal and page alike."""
