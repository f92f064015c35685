"""The interface that training workers talk over is the one whose address the node has in Ray."""

from __future__ import annotations

import socket

import psutil
from clinfuse_platform.network import interface_of


def test_every_address_of_this_machine_has_its_interface_and_loopback_none() -> None:
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            if one.family == socket.AF_INET and not one.address.startswith("127."):
                assert interface_of(one.address) == name
    assert interface_of("127.0.0.1") is None
    assert interface_of("192.0.2.1") is None  # an address for documentation, nobody's
