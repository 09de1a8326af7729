"""Names of libraries that are not public: each is used in one file a library, and a test says what an upgrade changed.

Three things are checked. What Rondo uses of each library's private names is still there, and does what it is used for.
Elsewhere none is used: the source is read for them, and classes for methods that they replace unseen. What Ray calls a
developer API (documented, but free to change) is listed here with its purpose.
"""

import ast
import importlib
import inspect
import os
import pickle
import pkgutil
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("workflows", "datasets", "models")
FILES = {  # library or part of it -> where its private names may be
    "ray.train": "workflows/cluster/ray_train_private.py",
    "ray.tune": "workflows/tuning/ray_tune_private.py",
    "ray.air": "workflows/tuning/ray_tune_private.py",
    "ray.data": "datasets/pipeline/ray_data_private.py",
    "ray": "workflows/cluster/ray_core_private.py",
    "torch": "models/torch_private.py",
    "sacrebleu": "models/sacrebleu_private.py",
}
LIBRARIES = {
    "ray",
    "torch",
    "sacrebleu",
    "mlflow",
    "optuna",
    "pyarrow",
    "numpy",
    "pydantic",
    "yaml",
    "click",
    "rich",
    "matplotlib",
    "tokenizers",
    "safetensors",
    "psutil",
    "scipy",
    "soundfile",
    "soxr",
    "mido",
    "rapidfuzz",
    "jinja2",
    "pynvml",
    "torchmetrics",
}

# Ray's developer APIs that are used, and for what; private files aside, which say so themselves.
DEVELOPER = {
    "ray.cluster_resources": "how many CPUs and GPUs the workers and the readers of data may use",
    "ray.tune.execution.tune_controller.TuneController": "the type of an argument of schedulers",
    "ray.tune.experiment.Trial": "the type of an argument of schedulers and callbacks",
    "ray.tune.schedulers.TrialScheduler": "the type of Tune's schedulers",
    "ray.tune.search.Searcher": "the place where Tune asks for the settings of the next trial",
}


def gone(name: str, purpose: str, change: str) -> str:
    """The sentence of a test that fails after an upgrade."""
    library = name.partition(".")[0]
    return f"{library} {version(library)}: {name} was used {purpose}. {change}"


# What is used, and does what it is used for


def found(path: str, purpose: str, parameters: tuple[str, ...] | None = None):
    """An object by its dotted name, with these parameters if it is a function."""
    parts, held = path.split("."), None
    for end in range(len(parts), 0, -1):
        try:
            held = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        break
    for part in parts[end:]:
        assert hasattr(held, part), gone(path, purpose, f"It is no longer there: {part} is missing.")
        held = getattr(held, part)
    assert held is not None, gone(path, purpose, "It is no longer there.")
    if parameters is not None:
        now = tuple(inspect.signature(held).parameters)
        assert now[: len(parameters)] == parameters, gone(
            path, purpose, f"It takes other arguments now: {', '.join(now)} instead of {', '.join(parameters)}."
        )
    return held


def test_a_name_that_is_no_longer_there_is_told_in_a_sentence():
    with pytest.raises(AssertionError, match=r"ray \d.*: ray.train.torch.config._Nothing was used to test. It is no "):
        found("ray.train.torch.config._Nothing", "to test")
    with pytest.raises(AssertionError, match=r"It takes other arguments now: actor, no_restart instead of it\."):
        found("ray.kill", "to test", ("it",))
    with pytest.raises(AssertionError, match=r"ray.train.nowhere.Nothing was used .*: nowhere is missing"):
        found("ray.train.nowhere.Nothing", "to test")


def test_ray_train_keeps_the_notice_of_a_node_that_goes_in_each_worker():
    purpose = "to save a checkpoint when a node is about to be taken away, without a barrier at every step"
    context = found("ray.train.v2._internal.execution.context.TrainContext", purpose)
    assert "preemption_context" in context.__dataclass_fields__, gone(
        "ray.train.v2._internal.execution.context.TrainContext", purpose, "It has no preemption_context any more."
    )
    notice = found("ray.train.v2._internal.execution.preemption.PreemptionContext", purpose)
    assert notice().preemption_info is None
    current = found("ray.train.v2._internal.execution.context.get_train_context", purpose, ())
    with pytest.raises(RuntimeError):  # this is how a process that is no worker is recognised
        current()


def test_a_process_that_is_no_worker_of_ray_train_has_no_notice():
    from workflows.cluster.ray_train_private import preemption_notice

    assert preemption_notice()() is None


def test_a_worker_of_ray_train_hears_the_notice_once_it_is_there(monkeypatch):
    from ray.train.v2._internal.execution import context
    from ray.train.v2._internal.execution.preemption import PreemptionContext

    from workflows.cluster.ray_train_private import preemption_notice

    kept = PreemptionContext()
    monkeypatch.setattr(context, "_train_context", SimpleNamespace(preemption_context=kept))
    notice = preemption_notice()
    assert notice() is None
    kept.preemption_info = "a node"
    assert notice() == "a node"


def test_the_public_call_for_that_notice_is_still_a_barrier():
    import ray.train

    said = " ".join((ray.train.get_preemption_info.__doc__ or "").split())
    assert "All workers must call `ray.train.get_preemption_info` the same number of times" in said, gone(
        "ray.train.get_preemption_info",
        "not, as it was a barrier",
        "Its documentation no longer says so: use it in ray_train_private.py instead of a private name.",
    )


def test_ray_train_sets_torch_up_by_the_class_that_is_derived_from():
    from ray.train.torch import TorchConfig

    purpose = "to replace a worker that is lost while the workers connect, like any other"
    backend = found("ray.train.torch.config._TorchBackend", purpose)
    found("ray.train.torch.config._TorchBackend.on_start", purpose, ("self", "worker_group", "backend_config"))
    assert TorchConfig().backend_cls is backend, gone(
        "ray.train.torch.config._TorchBackend", purpose, f"TorchConfig names {TorchConfig().backend_cls} now."
    )
    group = found("ray.train.v2._internal.execution.worker_group.WorkerGroup.execute", purpose)
    assert list(inspect.signature(group).parameters)[:2] == ["self", "fn"]


def test_ray_train_tries_again_what_the_backend_raises_for_a_lost_worker():
    from ray.exceptions import RayTaskError
    from ray.train import ControllerError, FailureConfig

    from workflows.cluster.ray_train_private import WorkerGroupStartupFailedError

    purpose = "to replace a worker that is lost while the workers connect, like any other"
    policy = found("ray.train.v2._internal.execution.failure_handling.DefaultFailurePolicy", purpose)
    deciding = policy(FailureConfig(max_failures=1, controller_failure_limit=1))
    again = deciding.make_decision(ControllerError(WorkerGroupStartupFailedError("a worker is lost")))
    assert again.name == "RETRY", gone(
        "ray.train.v2._internal.exceptions.WorkerGroupStartupFailedError",
        purpose,
        "A run now ends at it: see which errors of a controller are tried again.",
    )
    lost = deciding.make_decision(ControllerError(RayTaskError("f", "", ValueError("lost"))))
    assert lost.name == "RAISE", gone(
        "ray.train.v2._internal.exceptions.WorkerGroupStartupFailedError",
        purpose,
        "Ray tries other errors again, too: RetriedBackend may no longer be needed.",
    )


def test_what_a_worker_failed_of_is_found_in_what_ray_train_wraps_it_in():
    from workflows.cluster.ray_train_private import cause_of

    purpose = "to say what a run failed of"
    raised = found("ray.train.v2._internal.exceptions.UserExceptionWithTraceback", purpose, ("exc", "traceback_str"))
    silent = found("ray.train.v2._internal.exceptions.WorkerHealthCheckFailedError", purpose, ("message", "failure"))
    error = KeyError("lost")
    assert cause_of(raised(error, "")) is error, gone(
        "ray.train.v2._internal.exceptions.UserExceptionWithTraceback", purpose, "It has no _base_exc any more."
    )
    assert cause_of(silent("no answer", error)) is error, gone(
        "ray.train.v2._internal.exceptions.WorkerHealthCheckFailedError",
        purpose,
        "It has no health_check_failure any more.",
    )
    assert cause_of(error) is error


def test_workers_that_find_is_start_timeout_are_told_from_other_failures():
    from workflows.cluster.ray_train_private import is_start_timeout

    late = found(
        "ray.train.v2._internal.exceptions.WorkerGroupStartupTimeoutError",
        "to say that there was no room for the workers",
        ("num_workers",),
    )
    assert is_start_timeout(late(4)) and not is_start_timeout(RuntimeError("another"))


def test_ray_tune_gives_a_failed_call_of_a_trial_to_the_method_that_is_replaced():
    from ray.exceptions import OutOfMemoryError

    from workflows.tuning import ray_tune_private

    purpose = "to let a search go on after Ray has ended a trial's process for lack of memory"
    name = "ray.air.execution._internal.actor_manager.RayActorManager._actor_task_failed"
    found(name, purpose, ("self", "tracked_actor_task", "exception"))
    manager = ray_tune_private.RayActorManager
    seen: list[Exception] = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda actor, error: seen.append(error))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    fake = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(manager, "_actor_task_failed", manager._actor_task_failed)  # taken back afterwards
        if not hasattr(manager._actor_task_failed, "survives_memory"):
            with pytest.raises(RuntimeError, match="unexpected"):
                manager._actor_task_failed(fake, task, OutOfMemoryError("too large"))
                pytest.fail(gone(name, purpose, "Tune knows that error now: the replacement is no longer needed."))
        ray_tune_private.survive_memory()
        replaced = manager._actor_task_failed
        ray_tune_private.survive_memory()
        assert manager._actor_task_failed is replaced
        manager._actor_task_failed(fake, task, OutOfMemoryError("too large"))
    assert [ray_tune_private.died_of_memory(error) for error in seen] == [True], gone(
        name, purpose, "It no longer gives the error of a process that died to the callbacks of its trial."
    )


def test_words_of_ray_for_a_process_that_took_too_much_memory_are_known():
    from ray.exceptions import OutOfMemoryError, RayActorError

    from workflows.tuning.ray_tune_private import OutOfMemoryDeath, died_of_memory

    assert died_of_memory(RayActorError(error_msg="Task was killed due to the node running low on memory."))
    assert died_of_memory(OutOfMemoryError("too large"))
    assert died_of_memory(pickle.loads(pickle.dumps(OutOfMemoryDeath(error_msg="too large"))))
    assert not died_of_memory(RayActorError(error_msg="its node died"))
    assert not died_of_memory(ValueError("running low on memory"))


def test_ray_tune_keeps_the_error_of_a_trial_in_the_file_that_is_read(tmp_path):
    from workflows.tuning.ray_tune_private import error_of

    purpose = "to say what ended a trial's process"
    kept = found("ray.tune.experiment.trial.Trial.pickled_error_file", purpose)
    file = tmp_path / "error.pkl"
    file.write_bytes(pickle.dumps(KeyError("lost")))
    trial = SimpleNamespace(local_path=str(tmp_path), run_metadata=SimpleNamespace(pickled_error_filename=file.name))
    trial.pickled_error_file = kept.fget(trial)
    assert isinstance(error_of(trial), KeyError), gone(
        "ray.tune.experiment.trial.Trial.pickled_error_file", purpose, "It is no longer the path of a pickled error."
    )
    assert error_of(SimpleNamespace(pickled_error_file=None)) is None


@pytest.mark.parametrize("name", ["AsyncHyperBandScheduler", "MedianStoppingRule"])
def test_schedulers_of_ray_tune_learn_from_trials_of_an_earlier_process(name):
    from workflows.tuning.ray_tune_private import replay

    kind = found(f"ray.tune.schedulers.{name}", "to stop trials by what those of an earlier process reached")
    how = {"max_t": 4, "reduction_factor": 2} if name == "AsyncHyperBandScheduler" else {"min_samples_required": 3}
    scheduler = kind("epoch", "judged", "min", grace_period=1, **how)
    for number in range(4):
        replay(
            scheduler,
            f"past-{number}",
            {},
            ({"epoch": epoch, "judged": 1.0, "time_total_s": epoch} for epoch in range(1, 4)),
        )
    trial = type("New", (), {"trial_id": "new", "config": {}})()
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, {"epoch": 1, "judged": 9.0, "time_total_s": 1}) == "STOP", gone(
        f"ray.tune.schedulers.{name}",
        "to stop trials by what those of an earlier process reached",
        "A trial that is far worse than those is no longer stopped.",
    )


def population():
    from workflows.tuning.ray_tune_private import SynchronousPopulation

    class Own(SynchronousPopulation):
        def adapt(self, config, trial):
            return {**config, "number": trial.config["number"]}

    return Own(
        time_attr="epoch",
        metric="judged",
        mode="min",
        perturbation_interval=2,
        synch=True,
        log_config=False,
        hyperparam_mutations={"rate": [0.1, 0.2]},
    )


def test_population_based_training_takes_the_config_that_is_adapted_to_the_trial():
    purpose = "to let a trial that takes another's weights stay itself"
    name = "ray.tune.schedulers.PopulationBasedTraining._get_new_config"
    found(name, purpose, ("self", "trial", "trial_to_clone"))
    exploit = found("ray.tune.schedulers.PopulationBasedTraining._exploit", purpose)
    assert "self._get_new_config(" in inspect.getsource(exploit), gone(name, purpose, "Nobody calls it any more.")
    mine, other = (SimpleNamespace(config={"rate": 0.1, "number": number}) for number in (1, 2))
    config, operations = population()._get_new_config(mine, other)
    assert config["number"] == 1 and config["rate"] in (0.1, 0.2) and "rate" in operations, gone(
        name, purpose, "It no longer returns a config and what was done to it."
    )


def test_population_based_training_waits_for_no_trial_that_has_ended():
    purpose = "to let a population's trials go on when one has ended"
    name = "ray.tune.schedulers.PopulationBasedTraining"
    scheduler = population()
    for attribute in ("_trial_state", "_next_perturbation_sync", "_perturbation_interval"):
        assert hasattr(scheduler, attribute), gone(name, purpose, f"It has no {attribute} any more.")
    found("ray.tune.execution.tune_controller.TuneController.get_live_trials", purpose, ("self",))
    trials = ["first", "second", "third"]
    controller = SimpleNamespace(get_live_trials=lambda: trials)
    state = found("ray.tune.schedulers.pbt._PBTTrialState", purpose, ("trial",))
    scheduler._trial_state |= {trial: state(SimpleNamespace(experiment_tag=trial)) for trial in trials}
    assert {one.last_train_time for one in scheduler._trial_state.values()} == {0}, gone(
        name, purpose, "What is known of a trial has no last_train_time any more."
    )
    for trial in trials[:2]:
        scheduler._trial_state[trial].last_train_time = 2
    assert scheduler._next_perturbation_sync == 2
    scheduler._release_waiting(controller, None)
    assert scheduler._next_perturbation_sync == 2  # the third is still awaited
    scheduler._release_waiting(controller, "third")
    assert scheduler._next_perturbation_sync == 4, gone(name, purpose, "They wait for it.")


def test_ray_data_has_the_options_that_are_set():
    from ray.data import DataContext

    from datasets.pipeline.ray_data_private import set_options

    purpose = "to keep rows in order, and to start reading at once"
    before = DataContext.get_current()
    try:
        context = DataContext()
        DataContext._set_current(context)
        for name in ("use_datasource_v2", "enable_progress_bars", "print_on_execution_start", "execution_options"):
            assert hasattr(context, name), gone(f"ray.data.DataContext.{name}", purpose, "It is no longer there.")
        for name in ("preserve_order", "verbose_progress", "resource_limits"):
            assert hasattr(context.execution_options, name), gone(
                f"ray.data.ExecutionOptions.{name}", purpose, "It is no longer there."
            )
        set_options(progress=False)
        assert (context.use_datasource_v2, context.execution_options.preserve_order) == (False, True)
    finally:
        DataContext._set_current(before)


def test_ray_data_takes_a_limit_of_its_memory():
    found("ray.data.ExecutionResources.for_limits", "to bound what is read ahead")
    from ray.data import ExecutionOptions, ExecutionResources

    from datasets.pipeline.ray_data_private import limit_memory

    dataset = SimpleNamespace(context=SimpleNamespace(execution_options=ExecutionOptions()))
    limit_memory(dataset, 1 << 20)
    limits = dataset.context.execution_options.resource_limits
    assert isinstance(limits, ExecutionResources) and limits.object_store_memory == 1 << 20, gone(
        "ray.data.ExecutionResources.for_limits", "to bound what is read ahead", "It sets no such limit any more."
    )
    assert limits.cpu == float("inf")


def test_ray_data_gives_references_to_its_blocks():
    found("ray.data.Dataset.to_arrow_refs", "to read prepared rows where they lie in the object store", ("self",))
    found("ray.data.Dataset.context", "to bound what is read ahead")


def test_ray_data_carries_an_error_of_ours_as_an_argument():
    from datasets.pipeline.ray_data_private import user_code_error
    from datasets.reading.errors import user_errors

    carrier = user_code_error(ValueError("row 3 is wrong"))
    assert isinstance(carrier, found("ray.exceptions.UserCodeException", "to bring a message out of a task"))
    with pytest.raises(ValueError, match=r"^row 3 is wrong$"), user_errors():
        raise pickle.loads(pickle.dumps(carrier))


def test_ray_data_logs_errors_under_the_names_that_are_kept_quiet():
    from datasets.pipeline.ray_data_private import LOUD

    purpose = "to keep Ray from announcing as faults the errors that are shown as messages anyway"
    for name in LOUD:
        module = importlib.import_module(name)
        assert module.logger.name == name and "logger.e" in inspect.getsource(module), gone(
            name, purpose, "It logs no errors any more: find who does."
        )


def test_ray_takes_requests_for_nodes():
    found("ray.autoscaler.sdk.request_resources", "to ask an autoscaler for nodes", ("num_cpus", "bundles"))


@pytest.fixture
def session(without_ray):
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_ray_says_what_each_node_has(session):
    from workflows.cluster.ray_core_private import alive_nodes

    assert alive_nodes(), gone("ray.nodes", "to see what each node has", "It lists no node that is alive.")
    for key in ("NodeID", "NodeManagerAddress", "Resources"):
        assert key in alive_nodes()[0], gone("ray.nodes", "to see what each node has", f"There is no {key} any more.")


def test_ray_marks_the_driver_of_a_job_by_the_variable_that_is_looked_for():
    from workflows.cluster.ray_core_private import JOB_VARIABLE

    name = "ray._private.runtime_env.constants.RAY_JOB_CONFIG_JSON_ENV_VAR"
    assert found(name, "to know a driver of `ray job submit`") == JOB_VARIABLE, gone(
        name, "to know a driver of `ray job submit`", "The variable has another name."
    )


def variables() -> list[str]:
    """Environment variables by which the source sets Ray up."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "workflows").rglob("*.py")))
    return sorted(set(re.findall(r'"((?:RAY|TUNE)_\w+)"', text)) - {"RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"})


def test_ray_reads_the_environment_variables_that_are_set():
    import ray

    used = variables()
    assert {"RAY_worker_niceness", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "TUNE_GLOBAL_CHECKPOINT_S"} <= set(used)
    root = Path(ray.__file__).parent
    text = "\n".join(
        path.read_text(errors="ignore")
        for part in ("_private", "train", "tune", "air", "data")
        for path in (root / part).rglob("*.py")
    )
    for name in used:
        assert name in text, gone(f"ray's environment variable {name}", "to set Ray up", "Ray no longer reads it.")


def test_torch_says_whether_this_cpu_has_bf16():
    import torch

    from models.torch_private import cpu_has_bf16

    assert hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"), gone(
        "torch.ops.mkldnn._is_mkldnn_bf16_supported", "to keep from a kernel that fails", "It is no longer there."
    )
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)
    abilities = torch.cpu.get_capabilities()
    if any(abilities.get(name) for name in ("amx_bf16", "avx512_bf16")) and "ONEDNN_MAX_CPU_ISA" not in os.environ:
        assert cpu_has_bf16(), gone(
            "torch.ops.mkldnn._is_mkldnn_bf16_supported",
            "to keep from a kernel that fails",
            "It denies what the CPU has.",
        )


@pytest.mark.parametrize(("module", "metric"), [("bleu", "BLEU"), ("chrf", "CHRF")])
def test_sacrebleu_counts_in_parts_what_it_scores_as_a_whole(module, metric):
    from models.sacrebleu_private import counts, score

    purpose = "to add up counts over batches and workers"
    kind = found(f"sacrebleu.metrics.{module}.{metric}", purpose)
    found("sacrebleu.metrics.base.Metric._extract_corpus_statistics", purpose, ("self", "hypotheses", "references"))
    found("sacrebleu.metrics.base.Metric._compute_score_from_stats", purpose, ("self", "stats"))
    truth = ["the cat sat on the mat today", "a dog ran over the road", "it is raining in the town"]
    written = ["the cat sat on a mat today", "a dog ran over the road", "it rains in the town"]
    parts = [counts(kind(), truth[:2], written[:2]), counts(kind(), truth[2:], written[2:])]
    whole = kind().corpus_score(written, [truth]).score
    assert score(kind(), [a + b for a, b in zip(*parts, strict=True)]) == pytest.approx(whole), gone(
        f"sacrebleu.metrics.{module}.{metric}", purpose, "The counts of parts no longer add up to those of the whole."
    )


def test_mlflow_announces_new_tables_under_the_name_that_is_kept_quiet():
    module = importlib.import_module("mlflow.store.db.utils")
    assert module._logger.name == "mlflow.store.db.utils", gone(
        "mlflow.store.db.utils", "to keep its announcement of each new table quiet", "It logs under another name."
    )


# Elsewhere none is used


def owner(name: str) -> str | None:
    """The longest entry of FILES that a dotted name lies in."""
    own = [part for part in FILES if name == part or name.startswith(f"{part}.")]
    return max(own, key=len, default=None)


def is_private(name: str) -> bool:
    """Whether a dotted name of a library has a private part, or one of Ray's packages for versions of its own."""
    parts = name.split(".")
    hidden = any(re.match(r"_(?!_)", part) for part in parts) or parts[:3] == ["ray", "train", "v2"]
    return parts[0] in LIBRARIES and hidden


def private_names(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of every private name of others in a file's text.

    Imports and texts are identified by their dotted names. An attribute counts where it begins with an underscore and
    the file itself gives that name to nothing, be it read from an object, from ``self`` or by ``getattr``.
    """
    tree = ast.parse(source)
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    own = {node.name for node in ast.walk(tree) if isinstance(node, definitions)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name) for name in names if is_private(name))
        elif isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr) and node.attr not in own:
            yield node.lineno, node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = re.fullmatch(r"\w+(\.\w+)+", node.value)
            if named and is_private(node.value):
                yield node.lineno, node.value
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "setattr", "hasattr", "delattr")
            and len(node.args) > 1
        ):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if isinstance(name, str) and re.match(r"_(?!_)", name) and name not in own:
                yield node.lineno, name


def misplaced(file: str, source: str) -> list[str]:
    """Private names of others that a file may not use."""
    wrong = []
    for line, name in private_names(source):
        allowed = FILES.get(owner(name) or "") if "." in name else (file if file in FILES.values() else None)
        if allowed != file:
            where = allowed or "the library's own file"
            wrong.append(f"{file}:{line} uses {name}, which is not public; that belongs in {where}, with a test here")
    return wrong


def sources() -> list[str]:
    return [p.relative_to(ROOT).as_posix() for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))]


def test_private_names_of_libraries_are_used_in_one_file_a_library():
    found = [one for file in sources() for one in misplaced(file, (ROOT / file).read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)
    assert set(FILES.values()) <= set(sources())


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("workflows/train.py", "from ray.train.v2._internal.exceptions import RayTrainError"),
        ("workflows/train.py", "from ray.train.v2.api.exceptions import WorkerGroupError"),
        ("workflows/training/worker.py", "def f():\n    import torch._dynamo"),
        ("workflows/training/worker.py", "import importlib\nimportlib.import_module('torch._dynamo')"),
        ("workflows/training/worker_group.py", "from torch._C._distributed_c10d import GradBucket"),
        ("workflows/cluster/backend.py", "from ray.train.torch.config import _TorchBackend"),
        ("workflows/cluster/ray_train_private.py", "from ray.air._internal import util"),
        ("workflows/tuning/ray_tune_private.py", "import sacrebleu._private"),
        ("models/texts.py", "def f(metric):\n    return metric._compute_score_from_stats([])"),
        ("models/texts.py", "import torch\ntorch.ops.mkldnn._is_mkldnn_bf16_supported()"),
        ("workflows/tuning/tuner.py", "class A(B):\n    def f(self):\n        return self._trial_state"),
        ("workflows/tuning/tuner.py", "from ray.tune import Tuner\nTuner._run = None"),
        ("workflows/train.py", "def f(error):\n    return getattr(error, '_base_exc', error)"),
        ("workflows/train.py", "import logging\nlogging.getLogger('ray.data._internal.execution')"),
        ("workflows/tracking/mlflow.py", "from mlflow.tracking._tracking_service import utils"),
    ],
)
def test_a_planted_private_name_is_found(file, source):
    assert len(misplaced(file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("workflows/cluster/ray_train_private.py", "from ray.train.v2._internal.exceptions import RayTrainError"),
        ("workflows/tuning/tuner.py", "class A:\n    def f(self):\n        self._own = 1\n        return self._own"),
        ("workflows/tuning/tuner.py", "def f(x):\n    return x.__dict__, type(x).__name__"),
        ("workflows/train.py", "from ray.train import WorkerGroupError\nfrom workflows.tuning.tuner import _own"),
    ],
)
def test_a_public_name_or_one_of_our_own_is_none(file, source):
    assert misplaced(file, source) == []


def modules() -> Iterator[str]:
    for folder in FOLDERS:
        package = importlib.import_module(folder)
        yield from (
            one.name
            for one in pkgutil.walk_packages(package.__path__, f"{folder}.")
            if not one.name.endswith("__main__")
        )


def test_no_class_replaces_a_private_method_of_a_library_unseen():
    wrong = []
    for name in modules():
        module = importlib.import_module(name)
        for kind in vars(module).values():
            if not inspect.isclass(kind) or kind.__module__ != name:
                continue
            theirs = [base for base in kind.__mro__[1:] if base.__module__.partition(".")[0] in LIBRARIES]
            hidden = {own for own in vars(kind) if re.match(r"_(?!_)", own) and callable(vars(kind)[own])}
            replaced = sorted(own for own in hidden if any(own in vars(base) for base in theirs))
            file = f"{name.replace('.', '/')}.py"
            if replaced and file not in FILES.values():
                wrong.append(f"{file}: {kind.__name__}.{replaced[0]} replaces a method of its base that is not public")
    assert not wrong, "\n".join(wrong)


def developer_names(source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of Ray's developer APIs in a file's text."""
    tree, known = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {
                alias.asname or alias.name.partition(".")[0]: alias.name
                if alias.asname
                else alias.name.partition(".")[0]
                for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom) and not node.level:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        first, dot, rest = text.partition(".")
        path = f"{known.get(first, '')}{dot}{rest}"
        if path.startswith("ray.") and re.fullmatch(r"[\w.]+", path) and _is_developer(path):
            yield node.lineno, path


def _is_developer(path: str) -> bool:
    held = None
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            held = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        break
    for part in parts[end:]:
        held = getattr(held, part, None)
    return getattr(getattr(held, "_annotated_type", None), "name", "") == "DEVELOPER_API" and getattr(
        held, "_annotated", None
    ) == getattr(held, "__name__", "")


def test_developer_apis_of_ray_are_listed_with_their_purpose():
    used = {}
    for file in set(sources()) - set(FILES.values()):
        for line, name in developer_names((ROOT / file).read_text(encoding="utf-8")):
            used.setdefault(name, f"{file}:{line}")
    new = [
        f"{where} uses {name}, a developer API of Ray; list it in DEVELOPER with what it is for, or put it in the "
        "file of private names"
        for name, where in sorted(used.items())
        if name not in DEVELOPER
    ]
    assert not new, "\n".join(new)
    assert set(used) == set(DEVELOPER), f"no longer used: {sorted(set(DEVELOPER) - set(used))}"


def test_a_planted_developer_api_is_found():
    planted = (
        "import ray\nfrom ray import data\nfrom ray.autoscaler.sdk import request_resources as ask\n"
        "ask()\nray.nodes()\ndata.DataContext.get_current()\nray.get(1)\n"
    )
    assert {name for _, name in developer_names(planted)} == {
        "ray.nodes",
        "ray.data.DataContext",
        "ray.autoscaler.sdk.request_resources",
    }


@pytest.mark.parametrize("name", sorted(DEVELOPER))
def test_a_developer_api_of_ray_is_there(name):
    found(name, f"for this: {DEVELOPER[name]}")
