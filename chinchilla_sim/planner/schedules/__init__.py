"""In which order does a rank run the passes of its stages?"""
