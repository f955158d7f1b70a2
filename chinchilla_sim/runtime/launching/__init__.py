"""Starting ranks and keeping a run alive, on one machine or several."""
