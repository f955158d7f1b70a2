"""Do it for real: a program interpreted over torch.distributed, one process per rank.

The tour, from the command to the wire; a folder imports only from those below its own line (checked), `worker.py` is what every rank runs:

measuring            benchmark/ (races and kills), accuracy/ (short trainings), measurement/ (this machine, a model, emulated links)
requests             answering/
one rank's run       rank/: steps and epochs; saved/: nothing is lost; engine/: what else can play a plan
the program          program/: actions in order, gradients, updates, clipping, ZeRO 3
what is computed     stage/: stages, passes, lanes of tensor parallelism; variant/: smaller models
what is exchanged    exchanges/: codecs, buckets, groups, ZeRO 1 and 2, who agrees with whom
starting it          launching/: torchrun, rendezvous, keeping it alive; emulated/: machines that this one plays
writing it down      record/: spans on one clock, notes, signs of life
elsewhere            export/: the plan as files for torchrun, Slurm, Kubernetes, Docker, or one script of torch alone
"""
