"""Writes run directories as a training run leaves them, with given numbers."""

import json


def write_run(folder, *, scores, seed=0, settings=None, checkpoints=None, **files):
    """Writes a run that measured `bleu` at some steps.

    Args:
      folder: the run directory.
      scores: BLEU by step.
      seed: its seed.
      settings: further settings by flat name, as gin text.
      checkpoints: paths of STUDENT and TEACHER.
      files: `complete` (default true), `speed` rows, further metric `rows`, `samples` rows, and
        `evaluation` and `outputs` of the verb evaluate.

    Returns:
      The folder.
    """
    folder.mkdir(parents=True)
    last = max(scores, default=0)
    flat = {
        "seed": str(seed), "train_steps": str(last or 10), "best_metric": "'bleu'",
        "model_dir": repr(str(folder)), **(settings or {}),
    }  # fmt: skip
    launch = {
        "started": "2026-01-02T03:04:05+00:00", "continues_from": 0,
        "command_line": ["/code/gkd/__main__.py", "train", "--gin_file=a b.gin"],
        "git_commit": "0123abc", "git_dirty": False, "devices": "1 cpu (cpu)",
        "checkpoints": checkpoints or {},
        "bindings": {f"train.train.{name}": value for name, value in flat.items()},
    }  # fmt: skip
    _write_lines(folder / "launches.jsonl", [launch])
    rows = [{"step": step, "evaluation/bleu": score} for step, score in scores.items()]
    _write_lines(folder / "metrics.jsonl", [*rows, *files.get("rows", ())])
    _write_lines(folder / "speed.jsonl", files.get("speed", ()))
    if files.get("complete", True):
        summary = {"steps": last, "parameters": files.get("parameters", 1000)}
        (folder / "summary.json").write_text(json.dumps(summary))
    if "samples" in files:
        table = {"step": last, "name": "samples/a", "rows": files["samples"]}
        _write_lines(folder / "samples.jsonl", [table])
    if "evaluation" in files:
        (folder / "evaluation-test.json").write_text(json.dumps(files["evaluation"]))
    if "outputs" in files:
        _write_lines(folder / "evaluation-test.jsonl", files["outputs"])
    return folder


def _write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
