"""What the job can run on: nodes, devices, links and what reality taught about them."""
