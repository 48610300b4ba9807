"""The trainings for programs: endpoints that are named, typed and described.

Types are read from the signatures, so this module keeps its annotations as objects.
"""

from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from gradio.events import api

from sdatoms_app.queue.training import Training
from sdatoms_app.shared.endpoints import add_endpoint
from sdatoms_app.shared.messages import answer_errors
from sdatoms_app.shared.references import find_upload
from sdatoms_app.train.page import TrainPage

__all__ = [
    "build_runs_api",
]


def build_runs_api(page: TrainPage) -> None:
    """Add the endpoints; call inside `gr.Blocks`."""
    queue = page.queue

    def list_trainings() -> list[dict]:
        """All trainings, newest first: id, title, state, step, total, eta_s."""
        return [summarize(training) for training in queue.list()]

    def get_training(run: str) -> dict:
        """One training as it stands now, by its id."""
        return summarize(queue.find(run))

    def stop_training(run: str) -> dict:
        """Ask a training to save its state and stop; a queued one leaves the queue."""
        return summarize(queue.stop(run))

    def move_training(run: str, to: str = "first") -> dict:
        """Move a training that waits: first, up or down by one."""
        return summarize(queue.move(run, to))

    def set_training_gpu(run: str, gpu: int = -1) -> dict:
        """Choose the GPU of a training that waits, by its number; -1 leaves it open."""
        return summarize(queue.choose_gpu(run, None if gpu == -1 else gpu))

    def sample_training(run: str) -> dict:
        """Ask a running training to generate and measure samples after this step."""
        return summarize(queue.ask(run, "samples"))

    def save_training(run: str) -> dict:
        """Ask a running training to save a checkpoint after this step."""
        return summarize(queue.ask(run, "checkpoint"))

    def resume_training(run: str) -> dict:
        """Queue a stopped or failed training again from its last checkpoint."""
        return summarize(queue.resume(run))

    def extend_training(run: str, steps: int) -> dict:
        """Queue an ended training for further steps, from its last checkpoint."""
        return summarize(queue.extend(run, steps))

    def delete_training(run: str) -> bool:
        """Delete a training that is not under way, its pictures and its atoms."""
        queue.delete(run)
        return True

    def list_folders() -> list[str]:
        """The folders of pictures on the server that can be trained on."""
        return page.list_folders()

    def train(
        folder: str,
        instance_prompt: str,
        preset: str = "Balanced",
        settings: dict[str, Any] | None = None,
    ) -> dict:
        """Queue a training on a listed folder of the server.

        Args:
            folder: one of those that /list_folders names.
            instance_prompt: what the pictures show, with the trigger word.
            preset: Quick, Balanced or Best.
            settings: settings of the trainer that differ from the preset's.
        """
        given = (settings or {}) | {"instance_prompt": instance_prompt}
        return summarize(page.train_folder(folder, preset, given))

    def train_pictures(
        files: list[FileData],
        instance_prompt: str,
        preset: str = "Balanced",
        settings: dict[str, Any] | None = None,
    ) -> dict:
        """Queue a training on uploaded pictures; .txt files of their names are their captions."""
        given = (settings or {}) | {"instance_prompt": instance_prompt}
        return summarize(page.train_files([find_upload(f) for f in files], preset, given))

    def measure_training(preset: str = "Balanced", settings: dict[str, Any] | None = None) -> dict:
        """Minutes and memory of a preset with changes to it, measured on this machine once."""
        return page.measure_preset(preset, settings or {})

    add_endpoint(
        train_pictures,
        {
            "files": gr.File(file_count="multiple", render=False),
            "instance_prompt": gr.Textbox(render=False),
            "preset": gr.Textbox("Balanced", render=False),
            "settings": gr.JSON(render=False),
        },
        gr.JSON(visible=False, label="training"),
        concurrency_id="enqueue",
        concurrency_limit=1,
    )
    api(
        answer_errors(measure_training),
        api_name="measure_training",
        concurrency_id="measure",
        concurrency_limit=1,
    )
    for function in (
        list_folders,
        train,
        list_trainings,
        get_training,
        stop_training,
        move_training,
        set_training_gpu,
        sample_training,
        save_training,
        resume_training,
        extend_training,
        delete_training,
    ):
        api(
            answer_errors(function),
            api_name=function.__name__,
            concurrency_id="runs",
            concurrency_limit=4,
        )


def summarize(training: Training) -> dict[str, Any]:
    return {
        "id": training.id,
        "title": training.title,
        "state": training.state,
        "place": training.place,
        "phase": training.phase,
        "step": training.step,
        "total": training.total,
        "eta_s": training.eta_s,
        "stopping": training.stopping,
        "error": training.error,
        "reason": training.reason,
        "gpu": training.gpu,
        "atoms": training.atoms is not None,
    }
