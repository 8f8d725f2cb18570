"""Put on PYTHONPATH: every Python process of a tree writes down which hosts it looks up or connects to."""

import os
import sys

_LOG = os.environ["HOSTS_LOG"]


_LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
_SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")


def _write_down(event: str, arguments: tuple[object, ...]) -> None:
    if event in _LOOKUPS:
        host = arguments[0]
    elif event in _SENDS:
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else "unix socket"
    else:
        return
    # O_APPEND: processes write at the same time.
    log = os.open(_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{host}\n".encode())
    os.close(log)


sys.addaudithook(_write_down)
