"""The address that a server listens on."""

import socket


def open_socket(host: str, port: int) -> socket.socket:
    """Take an address.

    Raises:
        ValueError: it is taken, or not of this machine.
    """
    if not 0 <= port <= 65_535:
        raise ValueError(f"a port lies in 0 to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"cannot listen on {host} port {port} ({reason}): choose another with --host and --port; port 0 takes a "
            "free one"
        ) from error
    return taken


def address_of(taken: socket.socket) -> str:
    """The address as a browser takes it."""
    host, port = taken.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
