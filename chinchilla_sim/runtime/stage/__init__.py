"""What a rank computes: stages cut from the model, and their passes."""
