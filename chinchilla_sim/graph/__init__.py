"""What must be computed: a model as a networkx graph of tasks."""
