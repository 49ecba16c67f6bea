"""A job's bundle as a model of MLflow's registry of logged models, and which score belongs to which data."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException

MODEL_TYPE = "slimrun-bundle"
UNKNOWN = ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")  # what servers before MLflow 3 answer: they have no logged models
OF_WINDOWS = "fidelity"  # what is measured on the windows of a perplexity task


def logged(client: MlflowClient, experiment: str, run_id: str, name: str, tags: Mapping[str, str]) -> str | None:
    """Id of a new logged model that the run made, its weights by reference in the tags; None of an older server."""
    try:
        model = client.create_logged_model(experiment, name, run_id, dict(tags), model_type=MODEL_TYPE)
    except MlflowException as error:
        if error.error_code in UNKNOWN:
            return None
        raise
    model_id = str(model.model_id)
    client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    return model_id


def linked(metric: Metric, model_id: str | None, digests: Mapping[str, str]) -> Metric:
    """The metric as one of the model, on the data of its task where it is a task's score; `digests` by task."""
    if model_id is None:
        return metric
    task = metric.key.partition("/")[0]
    if task.startswith(OF_WINDOWS) and task not in digests:  # of a task that is not called perplexity...: fidelity_NAME
        own = task.removeprefix(OF_WINDOWS)
        task = own.removeprefix("_") if own.removeprefix("_") in digests else f"perplexity{own}"
    data = (task, digests[task]) if task in digests else (None, None)
    return Metric(metric.key, metric.value, metric.timestamp, metric.step, model_id, data[0], data[1])
