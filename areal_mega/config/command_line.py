"""From the command line to checked, typed options.

``+experiment=NAME`` selects a recipe from configs/experiment, or from the user's own folder beside it
(``--config-dir DIR``: DIR/experiment); ``+algorithm=NAME``, or several as ``+algorithm=[NAME,NAME]``, sets the options
that make an algorithm, from configs/algorithm; ``+scale=smoke`` makes a recipe small enough for a laptop. Every option
can be overridden in Hydra's grammar, ``--cfg job`` prints the result, ``--list`` names the recipes and algorithms,
``--help`` explains every option.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from areal_mega.config.errors import UserError
from areal_mega.config.options import (
    DPOOptions,
    EvaluateOptions,
    PPOOptions,
    RejectionOptions,
    RewardModelOptions,
    ServeRewardOptions,
    SFTOptions,
)

PROGRAMS: dict[str, type] = {
    "ppo": PPOOptions,
    "sft": SFTOptions,
    "dpo": DPOOptions,
    "reward": RewardModelOptions,
    "rejection": RejectionOptions,
    "evaluate": EvaluateOptions,
    "serve_reward": ServeRewardOptions,
}
_STARTS = {
    "ppo": "torchrun --nproc-per-node N -m areal_mega.tools.train_ppo +experiment=NAME [option=value ...]",
    "sft": "torchrun --nproc-per-node N -m areal_mega.tools.train_sft +experiment=NAME [option=value ...]",
    "dpo": "torchrun --nproc-per-node N -m areal_mega.tools.train_dpo +experiment=NAME [option=value ...]",
    "reward": "torchrun --nproc-per-node N -m areal_mega.tools.train_reward +experiment=NAME [option=value ...]",
    "rejection": "torchrun --nproc-per-node N -m areal_mega.tools.rejection_sample +experiment=NAME [option=value ...]",
    "evaluate": "python -m areal_mega.tools.evaluate model.path=FOLDER benchmarks=[NAME,...] [option=value ...]",
    "serve_reward": "python -m areal_mega.tools.serve_reward model.path=FOLDER [option=value ...]",
}
CONFIGS = Path(str(files("areal_mega.configs")))  # in the source tree or in the installed wheel


def parse(program: str, arguments: Sequence[str], main_rank: bool = True) -> Any:
    """The options of ``program``, a name of `PROGRAMS`, for the given command-line arguments.

    ``--list``, ``--help`` and ``--cfg job`` print (on the main rank) and leave the program.

    Raises:
        UserError: an argument, experiment, option or value that does not exist or does not fit.
    """
    arguments, folder = _take_config_dir(arguments)
    flags = [a for a in arguments if a.startswith("-")]
    overrides = [a for a in arguments if not a.startswith("-") and a != "job"]
    show = main_rank or None
    if "--list" in flags:
        _leave(show and f"{list_experiments(folder)}\n\n{list_algorithms(folder)}")
    if "--help" in flags or "-h" in flags:
        _leave(show and help_text(program))
    unknown = [f for f in flags if f not in ("--cfg", "-c", "--cfg=job")]
    if unknown:
        raise UserError(
            f"Unknown argument {unknown[0]}. Known: --list, --config-dir DIR, --cfg job, --help, and option=value."
        )
    config = compose_config(program, overrides, folder)
    if flags:
        _leave(show and OmegaConf.to_yaml(config))
    return to_options(config)


def compose_config(program: str, overrides: Sequence[str], folder: Path | None = None) -> Any:
    """Hydra's composition of the program's options, its experiment and the overrides; folder: the user's recipes."""
    _check_experiment(program, overrides, folder)
    _check_algorithms(overrides, folder)
    # What comes later wins: algorithm and scale are laid over the recipe, wherever they stand on the command line.
    overrides = sorted(overrides, key=lambda o: (o.startswith("+scale="), o.startswith("+algorithm=")))
    ConfigStore.instance().store(name=program, node=PROGRAMS[program])
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            own = [] if folder is None else [f"hydra.searchpath=['file://{folder}']"]
            config = compose(program, overrides=[*overrides, *own])
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(program, error)) from error
    _refuse_added(program, config)
    return config


def to_options(config: Any) -> Any:
    """Typed options from a composed config.

    Raises:
        UserError: a required option has no value.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        recipe = "Choose a recipe with +experiment=NAME (see --list) or set" if "experiment" in missing else "Set"
        raise UserError(
            f"No value for {', '.join(missing)}. {recipe} {'it' if len(missing) == 1 else 'them'} on the command line."
        )
    return OmegaConf.to_object(config)


def experiments(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """All recipes, those of the user's folder too: name to content. They are for PPO unless they say otherwise.

    Raises:
        UserError: the user's folder has no recipes, or one of the name of one of ours.
    """
    recipes = _recipes(CONFIGS)
    if folder is not None:
        own = _recipes(folder)
        if not own:
            raise UserError(f"--config-dir {folder}: expected recipes there, as {folder / 'experiment' / 'NAME.yaml'}.")
        for name in own.keys() & recipes.keys():
            raise UserError(
                f"--config-dir {folder}: {name} is one of the recipes that come with areal-mega; rename it."
            )
        recipes |= own
    return dict(sorted(recipes.items()))


def tool_of(program: str) -> str:
    """The file in tools/ that starts a program.

    Raises:
        UserError: there is no such program.
    """
    if program not in _STARTS:
        raise UserError(f"program={program}: there is none; there are {', '.join(_STARTS)}.")
    return _STARTS[program].partition("areal_mega.tools.")[2].split()[0]


def _recipes(folder: Path) -> dict[str, dict[str, Any]]:
    found = (folder / "experiment").glob("*.yaml")
    return {file.stem: {"program": "ppo", **(yaml.safe_load(file.read_text()) or {})} for file in found}


def list_experiments(folder: Path | None = None) -> str:
    """One line for each experiment."""
    recipes = experiments(folder)
    name, program = (max(map(len, column), default=0) for column in (recipes, PROGRAMS))
    return "\n".join(f"{n:<{name}}  {r['program']:<{program}}  {r.get('description', '')}" for n, r in recipes.items())


def algorithms(folder: Path | None = None) -> dict[str, str]:
    """What ``+algorithm`` can name, the user's own too: name to description, the first comment of its file."""
    found = [f for place in (CONFIGS, folder) if place for f in (place / "algorithm").glob("*.yaml")]
    return {f.stem: _first_comment(f.read_text()) for f in sorted(found, key=lambda f: f.stem)}


def _first_comment(text: str) -> str:
    comments = (line[2:] for line in text.splitlines() if line.startswith("# ") and "@package" not in line)
    return next(comments, "")


def list_algorithms(folder: Path | None = None) -> str:
    """One line for each algorithm."""
    known = algorithms(folder)
    width = max(map(len, known))
    return "\n".join(f"+algorithm={name:<{width}}  {text}" for name, text in known.items())


def help_text(program: str) -> str:
    """How to start the program and every option with its type, default and meaning."""
    recipes = (
        "--list: all experiments and algorithms.  --config-dir DIR: yours in DIR/experiment and DIR/algorithm too.\n"
        "+algorithm=NAME: over the experiment, the options of an algorithm.  +scale=smoke: to try it on a laptop.\n"
    )
    lists = {"evaluate": "--list: all benchmarks.  ", "serve_reward": ""}.get(program, recipes)
    head = f"{_STARTS[program]}\n\n{lists}--cfg job: the resulting options.\nOptions and their defaults:\n"
    return "\n".join([head, *(_help_line(*o) for o in walk(PROGRAMS[program]))])


def walk(cls: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Every option below a dataclass: its dotted name and its field."""
    types = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = types[field.name]
        if dataclasses.is_dataclass(kind):
            yield from walk(kind, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            yield prefix + field.name, field


def _help_line(name: str, field: dataclasses.Field) -> str:
    default = field.default_factory() if callable(field.default_factory) else field.default
    value = "required" if default == MISSING else "null" if default is None else repr(default)
    kind = " | ".join(field.metadata["choices"]) or str(field.type).replace("None", "null")
    return f"  {name}: {kind} = {value}\n      {field.metadata['help']}"


def _take_config_dir(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """The other arguments, and the folder of ``--config-dir``."""
    rest, folder = [], None
    remaining = iter(arguments)
    for argument in remaining:
        if argument.partition("=")[0] == "--config-dir":
            value = argument.partition("=")[2] or next(remaining, "")
            if not value:
                raise UserError("--config-dir: expected a folder, such as --config-dir recipes.")
            folder = Path(value).resolve()
        else:
            rest.append(argument)
    return rest, folder


def _check_experiment(program: str, overrides: Sequence[str], folder: Path | None) -> None:
    names = [o.split("=", 1)[1] for o in overrides if o.lstrip("+").startswith("experiment=")]
    recipes = experiments(folder)
    for name in names:
        if name not in recipes:
            close = difflib.get_close_matches(name, recipes, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UserError(f"experiment={name}: no such recipe.{hint} There are: {', '.join(recipes)}.")
        if recipes[name]["program"] != program:
            raise UserError(f"experiment={name} is a recipe for {tool_of(recipes[name]['program'])}.")


def _check_algorithms(overrides: Sequence[str], folder: Path | None) -> None:
    known = algorithms(folder)
    for override in overrides:
        key, _, value = override.partition("=")
        for name in value.strip("[]").split(",") if key.lstrip("+") == "algorithm" else []:
            if name.strip() not in known:
                close = difflib.get_close_matches(name.strip(), known, 1)
                hint = f" Did you mean {close[0]}?" if close else ""
                raise UserError(f"{override}: no such algorithm.{hint} There are: {', '.join(known)}.")


def _refuse_added(program: str, config: Any) -> None:
    """``+name=value`` adds a key even where none was declared, and nobody would ever read it."""
    options = {name: str(field.type) for name, field in walk(PROGRAMS[program])}
    for key in _leaves(OmegaConf.to_container(config)):
        owner = next((name for name in options if key == name or key.startswith(f"{name}.")), None)
        if owner is None or (owner != key and not options[owner].startswith("dict")):
            close = difflib.get_close_matches(key, options, 1, 0.7)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UserError(f"{key}: there is no such option.{hint} (--help lists all options.)")


def _leaves(tree: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of everything in a nested dictionary that is not a non-empty dictionary itself."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _explain(program: str, error: Exception) -> str:
    """Hydra's message in one line, with the nearest existing option where one was mistyped."""
    names = [name for name, _ in walk(PROGRAMS[program])]
    key = getattr(error.__cause__, "full_key", None)
    if key in names:
        return f"{key}: {_first_line(error.__cause__)}"
    text = _first_line(error)
    if text.startswith("Could not override 'algorithm'"):
        return "algorithm=NAME: the recipe names no algorithm that this could take the place of; use +algorithm=NAME."
    if text.startswith("Multiple values for algorithm"):
        return "+algorithm=NAME: the recipe names one already; use algorithm=NAME, which takes its place."
    mistyped = re.search(r"'([\w.]+)'", text)
    close = difflib.get_close_matches(mistyped[1], names, 1, 0.7) if mistyped else []
    hint = f"Did you mean {close[0]}? " if close else ""
    return f"{text} {hint}(--help lists all options.)"


def _first_line(error: BaseException | None) -> str:
    return str(error).split("\n")[0].strip()


def _leave(text: str | None) -> None:
    if text:
        try:
            print(text, flush=True)
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)
