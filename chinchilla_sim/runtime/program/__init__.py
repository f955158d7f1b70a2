"""The actions of a program, played in order."""
