"""Records a run's configuration, command line, commit and versions in its directory."""

import dataclasses
import datetime
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin

from gkd.checkpoints import folders
from gkd.checkpoints.hugging_face import is_hugging_face
from gkd.checkpoints.t5x_arrays import is_t5x
from gkd.configuration.gin_files import Binding, Source, parse_statements
from gkd.errors import InvalidFile, InvalidValue, NotAFolder
from gkd.files.atomic_files import append_lines, replace_file
from gkd.files.json_files import Field, check_fields, parse_json, read_json
from gkd.parallel import processes
from gkd.runs import setting_changes
from gkd.runs.provenance import provenance

CONFIG_FILE = "config.gin"  # everything that was bound
OPERATIVE_CONFIG_FILE = "operative_config.gin"  # bindings and defaults that the run used
LAUNCHES_FILE = "launches.jsonl"  # one row per launch that trained, the oldest first
SUMMARY_FILE = "summary.json"  # written at the end
TEACHER_EVALUATION_FILE = "teacher_evaluation.json"
_LAUNCH_FIELDS = {
    "started": Field(kinds=(str,)),
    "continues_from": Field(kinds=(int,), least=0),
    "command_line": Field(kinds=(list,)),
    "bindings": Field(kinds=(dict,), required=True),
}


@dataclasses.dataclass
class RunDirectory:
    """An open run directory; as a context manager it records the operative configuration.

    Opening it records nothing, so that a launch that is refused later leaves the record unchanged.

    Example:
      with open_run(model_dir) as run:
          ...                              # everything that can refuse
          run.record(continues_from=16)    # once step 17 has run
          ...                              # training
    """

    path: pathlib.Path
    launches: tuple[dict[str, Any], ...]  # recorded before, the oldest first
    command_line: tuple[str, ...]
    started: str
    recorded: bool = False

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        if self.recorded:
            self.write_operative_config()

    def record(
        self,
        continues_from: int,
        checkpoints: Mapping[str, str | None] | None = None,
        digests: Mapping[str, str | None] | None = None,
    ) -> None:
        """Records this launch as the one that runs the steps after `continues_from`.

        Only the primary process of the job writes. Bindings that differ from the previous launch
        are reported in one line on stderr.

        Args:
          continues_from: the restored step, 0 for a fresh start.
          checkpoints: names by which the checkpoints that this launch reads are opened again (of a
            run its step folder, of the Hugging Face Hub OWNER/NAME@COMMIT), by role.
          digests: identities of those that are steps of runs, see `hashes.digest_of`, by role.
        """
        self.recorded = True
        if not processes.is_primary_process():
            return
        config = gin.config_str()
        bindings = config_bindings(config)
        if self.launches:
            changes = changed_bindings(self.launches[-1].get("bindings", {}), bindings)
            if changes:
                print(
                    f"gkd: warning: {self.path} was last run with another configuration: "
                    f"{'; '.join(changes)}",
                    file=sys.stderr,
                )
        launch = {
            "started": self.started,
            "continues_from": continues_from,
            **provenance(self.command_line),
            "checkpoints": _known(checkpoints),
            "digests": _known(digests),
            "bindings": bindings,
        }
        append_lines(self.path / LAUNCHES_FILE, json.dumps(launch, ensure_ascii=False) + "\n")
        replace_file(self.path / CONFIG_FILE, config)
        self.write_operative_config()

    def write_operative_config(self) -> None:
        """Writes the bindings and defaults that the run has used so far.

        A launch that used fewer of them than an earlier one changes nothing.
        """
        if not processes.is_primary_process():
            return
        path = self.path / OPERATIVE_CONFIG_FILE
        config = gin.operative_config_str()
        lines = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
        if lines and set(config.splitlines()) <= set(lines):
            return
        replace_file(path, config)


def _known(by_role: Mapping[str, str | None] | None) -> dict[str, str]:
    return {role: value for role, value in (by_role or {}).items() if value}


def open_run(
    model_dir: str | os.PathLike[str], command_line: Sequence[str] | None = None
) -> RunDirectory:
    """Creates or opens a run directory; nothing is recorded yet.

    Args:
      model_dir: path of the directory, which the primary process creates with its parents.
      command_line: command line of the process; by default `sys.argv`.

    Returns:
      The open directory.

    Raises:
      NotADirectoryError: the path is a file.
    """
    path = pathlib.Path(model_dir)
    if path.exists() and not path.is_dir():
        raise NotAFolder(f"MODEL_DIR {path} is a file: choose a directory for the run")
    launches = ()
    if processes.is_primary_process():
        path.mkdir(parents=True, exist_ok=True)
        launches = tuple(read_launches(path))
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    command_line = sys.argv if command_line is None else command_line
    return RunDirectory(path, launches, tuple(command_line), started)


def check_changes(model_dir: str | os.PathLike[str], allow: bool) -> None:
    """Refuses to continue a run with another method, data or optimisation than it began with.

    Execution settings, intervals and TRAIN_STEPS may change; see `setting_changes.of_launches`.

    Args:
      model_dir: path of a run directory with checkpoints.
      allow: value of ALLOW_CHANGES; true accepts all changes.

    Raises:
      ValueError: settings have changed; the text has their old and new values.
    """
    launches = read_launches(model_dir) if processes.is_primary_process() else []
    if allow or not launches:
        return
    bindings = current_bindings()
    changes = setting_changes.of_launches(launches[-1].get("bindings", {}), bindings)
    if changes:
        raise InvalidValue(
            f"{model_dir} was trained with other settings: {'; '.join(changes)}: restore them, "
            "choose a new MODEL_DIR, or accept them with --gin.ALLOW_CHANGES=True"
        )


def check_nothing_lost(model_dir: str | os.PathLike[str]) -> None:
    """Refuses to begin a finished run again, whose record the first step would empty.

    A run that was killed before its first checkpoint has no summary, and begins again.

    Args:
      model_dir: path of a run directory without checkpoints.

    Raises:
      InvalidValue: its summary is of a run that has trained.
    """
    path = pathlib.Path(model_dir)
    try:
        summary = read_json(path / SUMMARY_FILE, dict) if processes.is_primary_process() else {}
    except (OSError, InvalidFile):
        return
    if isinstance(steps := summary.get("steps"), int) and steps > 0:
        raise InvalidValue(
            f"MODEL_DIR {model_dir} has the record of a run of {steps} steps, but no checkpoint: "
            "a new run would empty its metrics; choose a new MODEL_DIR, or move the directory away"
        )


def check_model_dir(model_dir: str | os.PathLike[str], **sources: str | None) -> None:
    """Refuses a MODEL_DIR that would write into a checkpoint that the run reads.

    Args:
      model_dir: path of the run directory.
      **sources: paths of the checkpoints that the run reads, or None, by macro.

    Raises:
      ValueError: MODEL_DIR is one of them (also by another path), is within one, or is a checkpoint
        of another format, a checkpoints folder or a step folder.
    """
    path = pathlib.Path(model_dir).resolve()
    for name, source in sources.items():
        if source is None:
            continue
        run = pathlib.Path(folders.run_of(pathlib.Path(source).resolve()))
        inside = run == path or run / folders.CHECKPOINTS_FOLDER in (path, *path.parents)
        if inside or (run.exists() and path.exists() and run.samefile(path)):
            raise InvalidValue(
                f"MODEL_DIR {model_dir} is the directory of {name} {source}, which training would "
                "overwrite: choose a separate directory for the run"
            )
    steps = [path, *(path / str(step) for step in folders.step_numbers(path))]
    if any((step / folders.STATE_ITEM).is_dir() for step in steps):
        raise InvalidValue(
            f"MODEL_DIR {model_dir} holds the checkpoints of a run themselves: give the run "
            "directory, or a new one"
        )
    if path.is_dir() and (is_hugging_face(path) or is_t5x(path)):
        raise InvalidValue(
            f"MODEL_DIR {model_dir} holds a checkpoint of another format: choose a separate "
            "directory for the run"
        )


def read_launches(model_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the launches recorded in a run directory, the oldest first.

    A half-written last line of a killed process is left out; no file is changed.

    Args:
      model_dir: path of the run directory.

    Returns:
      One dict per launch; an empty list for a new directory.

    Raises:
      ValueError: a line in the middle of the file is not a launch, or the file is a folder.
    """
    path = pathlib.Path(model_dir) / LAUNCHES_FILE
    if not path.exists():
        return []
    if path.is_dir():
        raise InvalidFile(f"{path} is a folder: move it away")
    launches = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            launch = parse_json(line, f"{path}:{number}", dict)
            check_fields(launch, _LAUNCH_FIELDS, f"{path}:{number}")
        except InvalidFile as error:
            raise InvalidFile(f"{error}; the line is no launch of a run: remove it") from error
        launches.append(launch)
    return launches


def read_or_mend(
    path: pathlib.Path, kinds: Mapping[str, type], report: Callable[[str], None]
) -> dict[str, Any]:
    """Reads a JSON file that its run can make again.

    Args:
      path: path of the file.
      kinds: the types of the fields that it must have.
      report: is called with a warning where the file is damaged.

    Returns:
      Its content; nothing where it is missing or damaged.
    """
    try:
        saved = read_json(path, dict)
        fields = {name: Field(kinds=(kind,), required=True) for name, kind in kinds.items()}
        check_fields(saved, fields, path)
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        report(f"warning: {error}: it is made again")
        return {}
    return saved


def step_spans(launches: Sequence[Mapping[str, Any]], last_step: int) -> list[dict[str, int]]:
    """Assigns a run's steps to the launches that ran them.

    The steps of a launch end where a later launch continued, which repeated any further steps.

    Args:
      launches: launches of `read_launches`; those of early versions without a step are left out.
      last_step: the newest step of the run.

    Returns:
      Consecutive spans: first_step and last_step (both inclusive), and launch, the number of the
      row in launches.jsonl, from 0.

    Example:
      >>> step_spans([{"continues_from": 0}, {"continues_from": 16}], 40)
      [{'first_step': 1, 'last_step': 16, 'launch': 0},
       {'first_step': 17, 'last_step': 40, 'launch': 1}]
    """
    spans, end = [], last_step
    for number, launch in reversed(list(enumerate(launches))):
        begin = launch.get("continues_from")
        if begin is not None and begin < end:
            spans.append({"first_step": begin + 1, "last_step": end, "launch": number})
            end = begin
    return spans[::-1]


def current_bindings() -> dict[str, str]:
    """Returns the bindings of the present configuration, see `config_bindings`."""
    return config_bindings(gin.config_str())


def config_bindings(config: str) -> dict[str, str]:
    """Splits a configuration into its bindings.

    Args:
      config: gin text, e.g. the result of `gin.config_str()`.

    Returns:
      Values by key, both in gin's spelling: {"LAMBDA": "0.5"}.

    >>> config_bindings("LAMBDA = 0.5")
    {'LAMBDA': '0.5'}
    """
    source = Source("config", [])
    bindings = {}
    for statement in parse_statements(config, "config"):
        if hasattr(statement, "value"):
            binding = Binding(*statement[:4], source, 0)
            bindings[binding.key] = repr(binding.value)
    return bindings


def changed_bindings(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Lists the differences of two configurations.

    Args:
      before, after: values by key, see `config_bindings`.

    >>> changed_bindings({"LAMBDA": "0.0", "BETA": "0.1"}, {"LAMBDA": "0.5"})
    ['BETA removed (0.1)', 'LAMBDA 0.0 → 0.5']
    """
    changes = []
    for key in sorted(before.keys() | after.keys()):
        if key not in after:
            changes.append(f"{key} removed ({before[key]})")
        elif key not in before:
            changes.append(f"{key} added ({after[key]})")
        elif before[key] != after[key]:
            changes.append(f"{key} {before[key]} → {after[key]}")
    return changes
