"""Two ends of a TCP connection: `talk.py serve ADDRESS` echoes, `talk.py measure ADDRESS BYTES` prints round trip and bulk seconds."""

import json
import socket
import sys
import time
from statistics import median

PORT, ROUNDS = 5000, 15


def connect(address: str) -> socket.socket:
    """As soon as the other end listens."""
    for _ in range(200):
        try:
            return socket.create_connection((address, PORT))
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise TimeoutError(address)


def serve(address: str) -> None:
    """Answer every message that ends with `.` or `E`."""
    with socket.create_server((address, PORT)) as server:
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(1 << 20):
            if data[-1:] in b".E":
                connection.sendall(b"k")


def measure(address: str, size: int) -> None:
    """Median seconds of a round trip, and of a bulk message with its answer."""
    connection = connect(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def timed(message: bytes) -> float:
        start_s = time.monotonic()
        connection.sendall(message)
        connection.recv(1)
        return time.monotonic() - start_s

    trip_s = median(timed(b".") for _ in range(ROUNDS))
    bulk_s = median(timed(bytes(size - 1) + b"E") for _ in range(3))
    print(json.dumps({"trip_s": trip_s, "bulk_s": bulk_s}))


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1] == "serve" else measure(sys.argv[2], int(sys.argv[3]))
