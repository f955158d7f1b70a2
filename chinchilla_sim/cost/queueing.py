"""Waiting lines by formula (Pollaczek 1930, Khinchine 1932), for Poisson arrivals at rate lambda and one server.

With mean service time s, load rho = lambda s < 1 and squared coefficient of variation c2 of the service time:

    mean wait = rho s (1 + c2) / (2 (1 - rho))        M/G/1    queue_wait_s
    mean wait = rho s / (2 (1 - rho))                 M/D/1    the same with c2 = 0
"""

from __future__ import annotations


def queue_wait_s(arrivals_per_s: float, service_s: float, variation: float = 0.0) -> float:
    """Mean seconds that a request waits before its service starts; infinite where more arrive than can be served.

    >>> queue_wait_s(0.5, 1.0), queue_wait_s(0.5, 1.0, variation=1.0), queue_wait_s(2.0, 1.0)
    (0.5, 1.0, inf)
    """
    load = arrivals_per_s * service_s
    return load * service_s * (1 + variation) / (2 * (1 - load)) if load < 1 else float("inf")
