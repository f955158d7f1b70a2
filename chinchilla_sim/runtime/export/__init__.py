"""Take a plan to other machines: a folder for torchrun, Slurm, Kubernetes or Docker, or one Python file that needs torch alone.

what all forms share    bundle (plan, code, weights and data with paths inside the folder), machines (ranks of each node), templates
one form each           forms; script, with stage_code (stages and loss as Python text) and script_check (what it can say)
"""
