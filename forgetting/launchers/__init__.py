"""Where runs are computed: processes of this machine, a Ray cluster, or a SLURM array; none changes a run's numbers.

``forgetting/launch.py`` is the local one; here are the others, and the choice between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, get_args

from forgetting.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from forgetting.config import RunConfig
    from forgetting.results import ResultStore
    from forgetting.run import Progress

LauncherName = Literal["local", "ray", "slurm"]


class Launch(Protocol):
    """Runs all it is given, in order; see :func:`forgetting.launch.launch`, which is one."""

    def __call__(
        self,
        runs: list[tuple[RunConfig, ResultStore]],
        *,
        workers: int,
        progress: Progress | None,
        wandb_project: str | None,
        hours: float | None,
        checkpoint_every: str,
    ) -> None:
        """Run all."""
        ...


def choose(
    name: str,
    *,
    cpus: int | None = None,
    gpus: int | None = None,
    address: str | None = None,
    directives: tuple[str, ...] = (),
    dry_run: bool = False,
) -> Launch:
    """Return the launcher of that name.

    Args:
        name: ``local``, ``ray`` or ``slurm``.
        cpus: Of each run, on ``ray`` and ``slurm``; 1 where not given.
        gpus: The same; 0 where not given.
        address: Of a Ray cluster; where not given, a cluster of this machine is begun and ended.
        directives: Lines for ``slurm``'s script, such as ``--time=24:00:00``.
        dry_run: Whether nothing is to be launched: ``slurm`` can do no more than print its script.

    Raises:
        UsageError: for another name, an option that the launcher does not read, or one that is not installed.
    """
    if name not in get_args(LauncherName):
        raise UsageError(
            f"launcher {name!r}: is none of {', '.join(get_args(LauncherName))}"
            f"{did_you_mean(name, get_args(LauncherName))}"
        )
    for option, given, readers in (
        ("--cpus-per-run", cpus is not None, ("ray", "slurm")),
        ("--gpus-per-run", gpus is not None, ("ray", "slurm")),
        ("--address", address is not None, ("ray",)),
        ("--sbatch", bool(directives), ("slurm",)),
    ):
        if given and name not in readers:
            raise UsageError(f"{option}: is for --launcher {' and '.join(readers)}, not for {name}; leave it out")
    if name == "slurm" and not dry_run:
        raise UsageError(
            "launcher 'slurm': prints an array script and starts nothing; add --dry-run, and pipe it into sbatch"
        )
    if name == "ray" and not dry_run:
        from forgetting.launchers.ray import RayLauncher, require_ray

        require_ray()
        return RayLauncher(cpus=cpus or 1, gpus=gpus or 0, address=address)
    from forgetting.launch import launch

    return launch
