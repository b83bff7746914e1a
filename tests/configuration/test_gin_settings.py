"""Settings of gin files: types, ranges and modules, refused in one line before any import."""

import inspect
import json
import os
import subprocess
import sys
import textwrap

import pytest

from gkd.cli import command_line
from gkd.cli.arguments import Command
from gkd.configuration import gin_settings
from gkd.configuration.gin_files import REPOSITORY, ConfigError
from gkd.configuration.verb_settings import SETTINGS
from tests.configs import grid
from tests.configuration.required import REQUIRED
from tests.paths import TINY

# Modules that gin files import, by the verbs' and tasks' own files.
MODULES = {path.rpartition(".")[0] for path in SETTINGS}
# Public functions of these modules that are no configurables.
OTHERS = {
    "gkd.metrics.reward_functions": {"rewards_of_rows"},
    "gkd.metrics.answers": {"agree", "is_right", "references_in"},
    "gkd.metrics.metrics": {"bleu_signature", "rouge_of"},
    "gkd.data.prompts": None,
    "gkd.vocabularies.vocabularies": None,
    "gkd.distill.divergences": {"reported_divergences"},
    "gkd.distill.mixing": None,
    "gkd.distill.optimizers": {"warmup_constant_cooldown", "update_if", "per_layer"},
    "gkd.distill.replay": None,
    "gkd.auxiliary_losses.inner_layer": None,
    "gkd.auxiliary_losses.witness": {"witness_loss", "with_witness_loss"},
    "gkd.evaluate.evaluate": {"decodings"},
    "gkd.sweep.sweep": {"plan"},
    "gkd.configuration.experiment": {"accepts", "table"},
    "gkd.decoders.decoder_only": None,
    "gkd.decoders.rotary": None,
    "gkd.decoders.t5gemma": {"parameters"},
    "gkd.models.lora": None,
    "gkd.models.t5": None,
}  # None: most functions of it are none


def refused(*overrides, files=(TINY,), verb="train", allowed=()):
    """The error of a configuration."""
    settings = ("MODEL_DIR='x'", *overrides)
    with pytest.raises(ConfigError) as error:
        command_line.read_configuration(Command(verb, tuple(map(str, files)), settings, allowed))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_public_function_is_configurable_or_known_not_to_be(module):
    others = OTHERS.get(module, set())
    if others is None:
        return
    loaded = __import__(module, fromlist=["x"])
    public = {
        name
        for name, value in vars(loaded).items()
        if inspect.isfunction(value) and value.__module__ == module and not name.startswith("_")
    }
    known = {path.rpartition(".")[2] for path in SETTINGS if path.rpartition(".")[0] == module}
    assert public - known == others


def test_every_macro_of_the_shipped_files_reaches_a_setting():
    for name in grid.names("runs", "common")[:3] + ["configs/sweeps/methods.gin"]:
        verb = "sweep" if "sweeps" in name else "train"
        reader = command_line.read_configuration(Command(verb, (name,), ()))
        macros = {b.macro for b in reader.final_bindings() if b.macro}
        reached = set()
        for binding in reader.final_bindings():
            path = gin_settings.path_of(binding.selector, binding.source)
            if not binding.macro and binding.parameter in SETTINGS[path]:
                reached |= _macros_in(binding, {b.macro: b for b in reader.final_bindings()})
        assert macros <= reached, name


def _macros_in(binding, macros):
    found = set()
    for macro in gin_settings.references_in(binding.value, gin_settings.Macro):
        found |= {macro.name} | _macros_in(macros[macro.name], macros)
    return found


WRONG = [
    ("LAMBDA='one'", "LAMBDA is 'one': use a number"),
    ("LAMBDA=1.5", "LAMBDA is 1.5: use 1 or less"),
    ("LAMBDA=@optimizers.adamw()", "LAMBDA is @optimizers.adamw(): use a number"),
    ("SEED='x'", "SEED is 'x': use a whole number"),
    ("SEED=4294967296", "SEED is 4294967296: use 4294967295 or less"),  # the key of seed 0
    ("STUDENT=3", "STUDENT is 3: use a string or None"),
    ("STUDENT=''", "STUDENT is '': use a length of 1 or more"),
    ("STUDENT='a\\0b'", "NUL"),
    ("STUDENT='\\ud800'", "half of a character"),
    ("INPUT_LENGTH=0", "INPUT_LENGTH is 0: use 1 or more"),
    ("INPUT_LENGTH=None", "INPUT_LENGTH is None: use a whole number"),
    ("TARGET_LENGTH=100000", "TARGET_LENGTH is 100000: use 65536 or less"),
    ("CHECKPOINT_EVERY=2.5", "CHECKPOINT_EVERY is 2.5: use a whole number"),
    ("CHECKPOINT_EVERY='8'", "CHECKPOINT_EVERY is '8': use a whole number"),
    ("TRAIN_STEPS=2.5", "TRAIN_STEPS is 2.5: use a whole number"),
    ("TRAIN_STEPS=True", "TRAIN_STEPS is True: use a whole number"),
    ("OPTIMIZER='adamw'", "OPTIMIZER is 'adamw': write @optimizers.adamw, without ''"),
    ("OPTIMIZER=@optimizers.adamw()", "write @optimizers.adamw, without ()"),
    ("DIVERGENCE='KL'", "DIVERGENCE is 'KL': use @divergences.forward_kl"),
    ("STUDENT_MODEL=@t5.T5Config", "STUDENT_MODEL is @t5.T5Config: write @t5.T5Config()"),
    ("REPLAY=@replay.Replay", "REPLAY is @replay.Replay: write @replay.Replay()"),
    ("LEARNING_RATE=-1", "LEARNING_RATE is -1: use more than 0"),
    ("LEARNING_RATE=1e400", "LEARNING_RATE is inf: use a finite number"),
    ("BATCH_SIZE=0", "BATCH_SIZE is 0: use 1 or more"),
    ("MODEL_PARALLELISM=0", "MODEL_PARALLELISM is 0: use 1 or more"),
    ("EVALUATE_EVERY=-1", "EVALUATE_EVERY is -1: use 0 or more"),
    ("TEMPERATURE=(1.0, 2.0, 3.0)", "TEMPERATURE is (1.0, 2.0, 3.0): use 2 elements"),
    ("TEMPERATURE=(1.0, 0)", "TEMPERATURE[1] is 0: use more than 0"),
    ("PROFILE_STEPS=3", "PROFILE_STEPS is 3: use a list of 2 × a whole number or None"),
    ("STUDENT_DTYPE='float16'", "STUDENT_DTYPE is 'float16': choose one of float32, bfloat16"),
    ("TEACHER_STEP='latest'", "TEACHER_STEP is 'latest': use"),
    ("ROWS={'train': 0}", "ROWS['train'] is 0: use 1 or more"),
    ("ROWS={'dev': 3}", "ROWS has the key 'dev': use 'train', 'validation', 'test'"),
    ("t5.T5Config.num_encoder_layers=10000000", "num_encoder_layers is 10000000: use 1000 or less"),
    ("t5.T5Config.vocab_size=1000000000000000", "use 10000000 or less"),
    ("LEARNING_RATE=" + "9" * 400, "LEARNING_RATE is 999"),
    ("LEARNING_RATE=" + "9" * 5000, "is not a gin value"),
    ("TEMPERATURE=" + "[" * 5000 + "]" * 5000, "nested too deeply"),
    ("ROWS={[1]: 2}", "unhashable"),
    ("LAMBDA=1j", "LAMBDA is 1j: use a number"),
    ("EVALUATION_TEMPERATURES=(0.5, 0)", "EVALUATION_TEMPERATURES[1] is 0: use more than 0"),
    ("STUDENT_MODEL=@s/gin.singleton()", ""),
]


@pytest.mark.parametrize(("override", "part"), WRONG)
def test_wrong_values_name_the_macro_that_the_user_set(override, part):
    assert part in refused(override)


def test_a_value_of_a_file_has_its_place_through_macros(tmp_path):
    run = tmp_path / "run.gin"
    run.write_text(f"include '{TINY}'\nINITIAL = 'one'\nLAMBDA = %INITIAL\n")
    assert refused(files=[run]).startswith(f"{run}:2: INITIAL is 'one': use a number")


def test_a_gin_file_that_is_not_utf8_is_one_line(tmp_path):
    run = tmp_path / "config.gin"
    run.write_bytes(b"LAMBDA = 0.5 # \xff\n")
    assert "config.gin: not UTF-8 text" in refused(files=[run])


def test_values_are_refused_before_anything_heavy_is_imported():
    code = (
        "import sys\nfrom gkd.cli import command_line\n"
        f"code = command_line.main(['train', '--gin_file={TINY}', '--gin.SEED=-1'])\n"
        "print(code, sys.modules.keys() & {'jax', 'numpy', 'tensorflow', 'seqio', 'flax'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2 set()\n"
    assert done.stderr == "gkd: error: SEED is -1: use 0 or more\n"


# Modules


CODE = [
    "import subprocess\n",
    "import os as job\n",
    "from os import path\n",
    "import gkd.runs.run_directory\n",
    "from gkd.sweep import sweep\nSTUDENT = @sweep.os.system()\nsweep.os.system.command = 'true'\n",
    "from gkd.data import tasks\nTASK = @tasks.sources.gzip.open()\n",
    "from gkd.distill import optimizers\nOPTIMIZER = @optimizers.jax.devices\n",
    "import gkd\nTASK = @gkd.configuration.buckets.local()\n",
    "import gkd.sweep.sweep\nTASK = @x/gin.singleton()\n"
    "x/gin.singleton.constructor = @gkd.sweep.sweep.os.getcwd\n",
]


@pytest.mark.parametrize("verb", ["train", "evaluate"])
@pytest.mark.parametrize("text", CODE)
def test_a_gin_file_runs_no_code(tmp_path, text, verb):
    run = tmp_path / "run.gin"
    run.write_text(f"from __gin__ import dynamic_registration\ninclude '{TINY}'\n{text}")
    message = refused("DRY_RUN=True", files=[run], verb=verb)
    assert f"{run}:" in message and "gin files may use gkd's own functions only" in message


def evil(tmp_path, monkeypatch):
    """A module that leaves a file behind when it is imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    mark = tmp_path / "imported"
    (tmp_path / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
        "def forward(student_logits, teacher_logits, **others):\n    return 0.0\n"
    )
    run = tmp_path / "run.gin"
    run.write_text(
        f"from __gin__ import dynamic_registration\nimport evil\ninclude '{TINY}'\n"
        "DIVERGENCE = @evil.forward\n"
    )
    return run, mark


def test_a_module_is_imported_only_where_the_user_allows_it(tmp_path, monkeypatch, capsys):
    run, mark = evil(tmp_path, monkeypatch)
    options = [f"--gin_file={run}", "--gin.MODEL_DIR='x'", "--gin.DRY_RUN=True"]
    assert command_line.main(["train", *options]) == 2
    assert "import of evil" in capsys.readouterr().err and not mark.exists()
    assert command_line.main(["plan", "--topology=cpu:1", *options]) == 2
    assert "import of evil" in capsys.readouterr().err and not mark.exists()
    assert command_line.main(["infer", "--model=x", f"--task={run}", "--output=o.jsonl"]) == 1
    assert "import of evil" in capsys.readouterr().err and not mark.exists()
    command = Command("train", (str(run),), ("MODEL_DIR='x'",), ("evil",))
    command_line.read_configuration(command)
    assert mark.exists()


def test_a_sweep_imports_nothing_for_its_cells_unless_the_user_allows_it(
    tmp_path, monkeypatch, capsys
):
    run, mark = evil(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    sweep = tmp_path / "sweep.gin"
    sweep.write_text(
        textwrap.dedent(f"""\
        from __gin__ import dynamic_registration
        include 'configs/sweeps/common.gin'
        from gkd.sweep import sweep
        sweep.sweep.directory = 'out'
        sweep.sweep.gin_files = ['{run}']
        sweep.sweep.axes = {{'seed': {{'0': ['SEED=0']}}}}
        """)
    )
    options = [f"--gin_file={sweep}", "--gin.ACTION='list'"]
    assert command_line.main(["sweep", *options]) == 1
    assert "import of evil" in capsys.readouterr().err and not mark.exists()
    first = "--gin.PREREQUISITES={'a': ['infer', '--model=m', '--output=o', '--allow_module=evil']}"
    assert command_line.main(["sweep", *options, "--gin.sweep.sweep.gin_files=[]", first]) == 1
    assert "give --allow_module to the sweep itself" in capsys.readouterr().err
    assert command_line.main(["sweep", *options, "--allow_module=evil"]) == 0
    assert "--allow_module=evil" in capsys.readouterr().out


def test_a_file_cannot_choose_the_launcher(tmp_path):
    run = tmp_path / "sweep.gin"
    run.write_text("include 'configs/sweeps/alpha.gin'\nLAUNCHER = ['bash', '-c', 'true']\n")
    with pytest.raises(ConfigError, match="sweep.gin:2: LAUNCHER chooses programs to run"):
        command_line.read_configuration(Command("sweep", (str(run),), ()))
    command_line.read_configuration(Command("sweep", (str(run),), ("LAUNCHER=['env']",)))


@pytest.mark.parametrize(
    "name", ["huggingface:squad", "mlds:x/y", "http://x/y", "../x", "xsum:1.1.0 ", ""]
)
def test_a_data_set_s_name_loads_no_code(name):
    """TFDS downloads and runs builders of names with another namespace."""
    message = refused(
        "from_tfds/tasks.TfdsData.name=" + json.dumps(name),
        "from_tfds/tasks.summarization.tfds=@from_tfds/tasks.TfdsData()",
        "TASK=@from_tfds/tasks.summarization()",
    )
    assert "tasks.TfdsData.name" in message


@pytest.mark.parametrize("name", ["", "os.", "a b", "os;x", "-x"])
def test_an_allowed_module_is_a_name(name, capsys):
    assert command_line.main(["train", f"--gin_file={TINY}", f"--allow_module={name}"]) == 2
    assert "--allow_module is" in capsys.readouterr().err


# Verbs with options of their own


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["infer", "--max_length=100000000"], "max_length is 100000000: use 65536 or less"),
        (["infer", "--max_length=0"], "max_length is 0: use 1 or more"),
        (["infer", "--temperature=nan"], "temperature is nan: use a finite number"),
        (["infer", "--temperature=-1"], "temperature is -1: use 0 or more"),
        (["infer", "--top_p=0"], "top_p is 0: use more than 0"),
        (["infer", "--top_p=inf"], "top_p is inf: use a finite number"),
        (["infer", "--top_k=-1"], "top_k is -1"),
        (["infer", "--samples=0"], "samples is 0"),
        (["infer", "--beams=-1"], "beams is -1"),
        (["infer", "--seed=4294967296"], "seed is 4294967296"),
        (["infer", "--seed=-1"], "seed is -1"),
        (["infer", "--step=latest"], "step is 'latest': use"),
        (["infer", "--step=-3"], "step is -3"),
        (["infer", "--batch_size=1e3"], "batch_size is '1e3': use a whole number"),
        (["infer", "--batch_size=10000000000"], "batch_size is"),
        (["infer", "--length_penalty=-1"], "length_penalty is -1"),
        (["infer", "--top_k_log_probs=0"], "top_k_log_probs is 0"),
        (["infer", "--model_parallelism=0"], "model_parallelism is 0"),
        (["infer", "--dtype=float16"], "--dtype"),
        (["infer", "--input="], "input is ''"),
        (["convert", "--step=x"], "step is 'x'"),
        (["convert", "--step=1.5"], "step is '1.5'"),
        (["plan", "--price=nan"], "price is nan"),
        (["plan", "--price=-1"], "price is -1"),
        (["plan", "--expected_length=0"], "expected_length is 0"),
    ],
)
def test_wrong_options(arguments, part, capsys):
    verb, option = arguments
    assert command_line.main([verb, *REQUIRED[verb], option]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and part in error


def test_options_are_refused_before_anything_heavy_is_imported():
    code = (
        "import sys\nfrom gkd.cli import command_line\n"
        "for verb, given in (('infer', ['--model=m', '--output=o', '--seed=-1']),"
        " ('convert', ['a', 'b', '--step=x']), ('plan', ['--topology=cpu:8', '--price=nan'])):\n"
        "    print(command_line.main([verb, *given]))\n"
        "print(sys.modules.keys() & {'jax', 'numpy', 'tensorflow', 'seqio', 'flax'})"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "2\n2\n2\nset()\n", done.stderr
