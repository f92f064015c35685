"""The network between training workers: on hosts with several addresses, the one that Ray itself uses."""

from __future__ import annotations

import os
from typing import Any

import psutil
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

SWITCHES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
LOOPBACK = ("127.", "::1")


def interface_of(address: str) -> str | None:
    """Name of this host's network interface with that address; None for loopback or where none has it."""
    if address.startswith(LOOPBACK):
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return str(name)
    return None


def name_network() -> None:
    """Tell gloo and NCCL the interface of the address that this node has in Ray; what the user has set stays.

    Left alone, gloo takes the address of the host's name, which many hosts resolve to loopback: workers on other
    hosts then connect to themselves and training never starts.
    """
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    for switch in SWITCHES if name else ():
        os.environ.setdefault(switch, str(name))


class NamedNetwork(TorchConfig):
    """Ray Train's set-up of torch.distributed, after each worker has named its network interface."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What sets the workers up."""
        return _NamingBackend


class _NamingBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(name_network)
        super().on_start(worker_group, backend_config)
