"""The description of existing ranks that Lightning asks for."""

from __future__ import annotations

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment

from trainer.world import World


class JoinedEnvironment(ClusterEnvironment):
    """Describes the ranks to Lightning, which must not start any: its launcher re-executes `sys.argv` for each rank."""

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def creates_processes_externally(self) -> bool:
        """True, so that Lightning starts no process."""
        return True

    @property
    def main_address(self) -> str:
        """Address of rank 0."""
        return self.world.master_addr

    @property
    def main_port(self) -> int:
        """Port of rank 0."""
        return self.world.master_port

    @staticmethod
    def detect() -> bool:
        """False, so that Lightning uses this class only where it is passed one."""
        return False

    def world_size(self) -> int:
        """Number of ranks."""
        return self.world.world_size

    def set_world_size(self, size: int) -> None:
        """Ignored: the world is given."""

    def global_rank(self) -> int:
        """This process among all ranks."""
        return self.world.rank

    def set_global_rank(self, rank: int) -> None:
        """Ignored: the rank is given."""

    def local_rank(self) -> int:
        """This process on its node."""
        return self.world.local_rank

    def node_rank(self) -> int:
        """This node among all nodes."""
        return self.world.rank // self.world.local_world_size
