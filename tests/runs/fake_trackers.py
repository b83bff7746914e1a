"""Trackers without their packages: modules with the signatures of the real ones, and a store."""

import collections
import threading
import types


class Store:
    """What a tracker has: per run its name, config, rows and outcome; and its faults to come."""

    def __init__(self):
        self.runs, self.faults, self.calls = {}, [], collections.Counter()
        self.hang = threading.Event()

    def meets(self, call):
        self.calls[call] += 1
        if call in self.faults:
            self.faults.remove(call)
            raise SystemExit("no network") if call == "exit" else ConnectionError("no network")
        if {f"hang in {call}", f"hang in {call} {self.calls[call]}"} & {*self.faults}:
            self.hang.wait(30)

    def values(self, run_id):
        """By name and step, all values that came."""
        came = collections.defaultdict(list)
        for step, values in self.runs[run_id]["rows"]:
            for name, value in values.items():
                came[name, step].append(value)
        return came


# Modules with the signatures of trackio 0.43.0, wandb 0.31.0 and mlflow 3.17.2.


def fake_trackio(store):
    class Run:
        def __init__(self, name, config, found):
            self.id, self.name, self.config = found or "fresh", name, config

        def log(self, metrics, step=None):
            store.meets("log")
            run = store.runs.setdefault(self.id, {"name": self.name, "rows": []})
            run["config"] = self.config
            run["rows"].append((step, metrics))

        def finish(self):
            store.meets("close")
            store.runs[self.id]["outcome"] = "finished"

    def init(project, name=None, config=None, resume="never", embed=True):
        store.meets("start")
        assert project == "gkd" and not embed and resume in ("allow", "never")
        found = [key for key, run in store.runs.items() if run["name"] == name]
        return Run(name, config, found[-1] if found and resume == "allow" else None)

    return {"trackio": types.SimpleNamespace(init=init)}


def fake_wandb(store):
    class Run:
        def __init__(self, name, key, config):
            self.id, self.resumed, self.offline = key, key in store.runs, False
            self.run = store.runs.setdefault(key, {"name": name, "rows": []})
            self.run["config"], self.preempted = config, False

        def define_metric(self, name, step_metric=None):
            assert (name, step_metric) == ("*", "step")

        def log(self, data, step=None, commit=None):
            store.meets("log")
            data = dict(data)
            self.run["rows"].append((data.pop("step"), data))

        def mark_preempting(self):
            self.preempted = True

        def finish(self, exit_code=None):
            store.meets("close")
            failed = "stopped" if self.preempted else "failed"
            self.run["outcome"] = failed if exit_code else "finished"

    def init(project=None, dir=None, id=None, name=None, config=None, resume=None, settings=None):
        store.meets("start")
        assert project == "gkd" and settings == {"console": "off"} and dir
        assert resume == ("allow" if id in store.runs else None) or resume == "allow"
        return Run(name, id, config)

    return {"wandb": types.SimpleNamespace(init=init, Settings=lambda **values: values)}


def fake_mlflow(store):
    class MlflowException(Exception):
        error_code = "RESOURCE_DOES_NOT_EXIST"

    Metric = collections.namedtuple("Metric", "key value timestamp step")
    Param = collections.namedtuple("Param", "key value")

    class MlflowClient:
        def get_experiment_by_name(self, name):
            store.meets("start")
            return None

        def create_experiment(self, name):
            assert name == "gkd"
            return "7"

        def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
            key = f"run{len(store.runs)}"
            store.runs[key] = {"name": tags["mlflow.runName"], "rows": [], "config": {}}
            store.runs[key]["commit"] = tags["mlflow.source.git.commit"]
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=key))

        def update_run(self, run_id, status=None, name=None):
            store.meets("start")
            if run_id not in store.runs:
                raise MlflowException("no such run")
            store.runs[run_id]["outcome"] = status

        def log_batch(self, run_id, metrics=(), params=(), tags=()):
            run = store.runs[run_id]
            assert len(params) <= 100
            run["config"] |= dict(params)
            if metrics:
                store.meets("log")
                (step,) = {metric.step for metric in metrics}
                run["rows"].append((step, {metric.key: metric.value for metric in metrics}))

        def set_terminated(self, run_id, status=None, end_time=None):
            store.meets("close")
            names = {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}
            store.runs[run_id]["outcome"] = names[status]

    entities = types.SimpleNamespace(Metric=Metric, Param=Param)
    return {
        "mlflow": types.SimpleNamespace(MlflowClient=MlflowClient, entities=entities),
        "mlflow.entities": entities,
        "mlflow.exceptions": types.SimpleNamespace(MlflowException=MlflowException),
    }


FAKES = {"trackio": fake_trackio, "wandb": fake_wandb, "mlflow": fake_mlflow}
