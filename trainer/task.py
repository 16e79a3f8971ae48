"""The interface of a task, and how tasks are found. The engine knows no task by name.

A task is a folder with three files, `config.py` (schemas and a `TaskSpec` called TASK; no torch), `module.py` (a
subclass of `trainer.module.TrainingModule`) and `data.py`, and its values in Hydra groups. `docs/adding_a_task.md`
walks through one.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trainer.config.own_parts import OwnModelConfig
from trainer.config.schema import Config, DataConfig, ModelConfig, TaskConfig
from trainer.errors import Problem, UserError, nearest

if TYPE_CHECKING:
    import torch

    from trainer.data.module import DataModule
    from trainer.estimate.memory import ModelSizes
    from trainer.inference import Inference
    from trainer.module import TrainingModule

HOME = Path(__file__).resolve().parent.parent


def no_problems(config: Config) -> Sequence[Problem]:
    """The check of a task that needs none beyond its types."""
    return ()


@dataclass(frozen=True)
class TaskSpec:
    """A task as the engine sees it.

    name: member of the `task` group. config, models, datas: schema of each node, by the node's `name`.
    module: "package.module:function" with `(Config, DataModule) -> TrainingModule`, imported only by a rank.
    data: "package.module:function" with `(Config) -> DataModule`, imported only by a rank.
    validate: problems that the types do not catch; must not import torch.
    conf: folder with Hydra groups of the task, in addition to conf/.
    needs_full_parameters: the task reads weights outside of its networks' forward, so no strategy may shard them.
    sizes: "package.module:function" with `(Config) -> ModelSizes | None`, for `plan`; it may import torch, but neither
    Lightning nor transformers, which take seconds. None where sizes are not known before the data is read.
    inference: "package.module:Class", a subclass of `trainer.inference.Inference`; None where the task has none.
    own_model: schema of a `model` node with `_target_`; None where the task takes no network of the user's own.
    takes_metrics: its evaluations feed metrics of the user's own; see TrainingModule.update_own_metrics.
    predicts_mixed: its trained networks are applied in mixed precision where trainer.precision says so.
    predict_arguments: schema of the arguments that the verb `predict` takes besides run=DIR.
    """

    name: str
    config: type[TaskConfig]
    models: Mapping[str, type[ModelConfig]]
    datas: Mapping[str, type[DataConfig]]
    module: str
    data: str
    validate: Callable[[Config[Any, Any, Any]], Sequence[Problem]] = field(default=no_problems)
    conf: Path | None = None
    needs_full_parameters: bool = False
    sizes: str | None = None
    inference: str | None = None
    predict_arguments: type[Any] | None = None
    own_model: type[OwnModelConfig] | None = None
    takes_metrics: bool = False
    predicts_mixed: bool = True

    def build_data(self, config: Config) -> DataModule:
        """The data module of a run; nothing is read from disk yet."""
        return _load(self.data)(config)

    def build_module(self, config: Config, data: DataModule) -> TrainingModule:
        """The training module of a run; `data` is set up, so numbers of classes and sizes are known."""
        return _load(self.module)(config, data)

    def model_sizes(self, config: Config) -> ModelSizes | None:
        """Sizes of networks and data, without building either; None where they are not known."""
        return _load(self.sizes)(config) if self.sizes is not None else None

    def load_inference(self, config: Config, run_dir: Path, device: torch.device) -> Inference:
        """The model of a finished run, ready for raw inputs. Raises: UserError: there is none."""
        if self.inference is None:
            raise UserError(f"task={self.name} defines no inference, so its runs cannot be applied")
        inference: type[Inference] = _load(self.inference)
        return inference.load(config, run_dir, device)


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


@cache
def find_tasks(plugins: tuple[str, ...] = ()) -> Mapping[str, TaskSpec]:
    """All tasks by name: the folders beside `trainer/`, entry points of the group `trainer.tasks`, and plugins.

    Args: plugins: folders outside the repository, each with a `config.py`.
    Raises: UserError: a plugin is not a task, or its name is taken.
    """
    _claim_tasks_package()
    specs = [
        importlib.import_module(f"tasks.{path.parent.name}.config").TASK
        for path in sorted((HOME / "tasks").glob("*/config.py"))
    ]
    specs += [entry.load() for entry in entry_points(group="trainer.tasks")]
    specs += [_load_plugin(Path(folder)) for folder in plugins]
    found: dict[str, TaskSpec] = {}
    for spec in specs:
        if spec.name in found:
            raise UserError(
                f"plugins: the task name {spec.name} is taken", "rename TASK.name in the plugin's config.py"
            )
        found[spec.name] = spec
    return found


def get_task(name: str, plugins: Sequence[str] = ()) -> TaskSpec:
    """One task by name. Raises: UserError: there is none of that name."""
    tasks = find_tasks(tuple(plugins))
    if name not in tasks:
        raise UserError(f"task={name}: no such task; {nearest(name, list(tasks))}")
    return tasks[name]


def is_plugin_loaded(folder: Path) -> bool:
    """Whether this process has already imported a plugin, because its command line names it."""
    loaded = sys.modules.get(folder.name)
    return loaded is not None and Path(getattr(loaded, "__path__", [""])[0]).resolve() == folder.expanduser().resolve()


def _claim_tasks_package() -> None:
    """Import our own `tasks` even if the working directory, which `python -m` puts first on the path, has one."""
    if "tasks" in sys.modules:
        return
    ours = HOME / "tasks"
    shadow = Path.cwd() / "tasks"
    if shadow.is_dir() and shadow.resolve() != ours and (shadow / "__init__.py").exists():
        print(f"note: {shadow} is not imported as `tasks`; name a folder of it with plugins=[...]", file=sys.stderr)
    _import_package("tasks", ours)


def _load_plugin(folder: Path) -> TaskSpec:
    folder = folder.expanduser().resolve()
    if not (folder / "config.py").exists():
        raise UserError(f"plugins={folder}: no config.py there", "a task folder holds config.py, module.py and data.py")
    _import_package(folder.name, folder)
    task = getattr(importlib.import_module(f"{folder.name}.config"), "TASK", None)
    if not isinstance(task, TaskSpec):
        raise UserError(f"plugins={folder}: config.py defines no TASK = TaskSpec(...)")
    return task


def _import_package(name: str, folder: Path) -> ModuleType:
    loaded = sys.modules.get(name)
    if loaded is not None:
        if Path(getattr(loaded, "__path__", [""])[0]).resolve() != folder.resolve():
            raise UserError(f"plugins={folder}: a package called {name} is already imported", "rename the folder")
        return loaded
    init = folder / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None or not init.exists():
        raise UserError(f"plugins={folder}: no __init__.py there", "an empty one makes the folder a package")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
