"""What would happen: a program played event by event."""
