"""Do it for real: a program interpreted over torch.distributed, one process per rank.

The tour, from the command to the wire:

starting it            launch, agent, start, rendezvous, parent, supervision, notes, heartbeat; worker, threads: what every rank runs
emulated machines      testbed, namespaces, fabric, guardian
one rank's run         training, batches, optimizers, clipping, memory, records,
                       recorder, clock, alignment
the program            interpreter, messages, gradients, updates, agreement, groups; passes, stages, deferred, dtypes
exchanges              exchange, posted, codecs, gradient_codecs, low_rank; sharding, fully_sharded (ZeRO)
tensor parallelism     division, lanes
nothing lost           checkpoint, checkpoint_files, checkpoint_reader, continuation, parts, pieces, rank_state, kills
requests               serving, requests, line
smaller models         variants, quantized, number_formats, sparsity, surgery; whole_variant
other forms            engines, torch_engine, engine_race; export
measuring              probe, format_probe, emulation, profiler, interlude, clocked, whole_passes, sharded_passes,
                       variant_race, recording_cost; accuracy_probe, short_training, virtual_replicas, virtual_steps
"""
