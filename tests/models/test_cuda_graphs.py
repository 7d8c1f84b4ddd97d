"""Graphs per shape: their management with a stand-in for the recorder, the recorder itself on a GPU."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from monai_diffaug.edit.options import InpaintOptions, Run
from monai_diffaug.models import cuda_graphs
from monai_diffaug.models.cuda_graphs import Captured, GraphedDenoiser, bucket_of

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: a graph can only be recorded on one")


def denoise(latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
    return latents[:, :4] * timestep + context.mean((1, 2))[:, None, None, None]


class Recorder:
    """Stand-in for a GPU: a replay computes the recorded call on the current inputs and writes into the output tensor."""

    def __init__(self, fails: type[Exception] | None = None) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.fails = fails
        self.busy = 0

    def __call__(self, call: Any, examples: tuple[Tensor, Tensor, Tensor]) -> Captured:
        self.shapes.append(tuple(examples[0].shape))
        if self.fails is not None:
            raise self.fails("operation not permitted when stream is capturing")
        inputs = examples[0].clone(), examples[1].clone(), examples[2].clone()
        output = torch.full_like(call(*inputs), float("nan"))

        def replay() -> None:
            assert self.busy == 0, "two calls use the tensors of one graph at once"
            self.busy += 1
            time.sleep(0.001)
            output.copy_(call(*inputs))
            self.busy -= 1

        return Captured(inputs, output, replay)


def call(rows: int, side: int = 4, seed: int = 0, step: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents, context = torch.randn(rows, 9, side, side, generator=generator), torch.randn(rows, 5, 6, generator=generator)
    return latents.to(dtype), torch.tensor(step), context.to(dtype)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 8), (9, 9), (13, 16), (16, 16), (26, 32)])
def test_a_bucket_pads_at_most_a_quarter(count: int, rows: int) -> None:
    assert bucket_of(count) == rows


@pytest.mark.parametrize("rows", [1, 3, 7, 8])
def test_a_replay_equals_the_denoiser(rows: int) -> None:
    graphed = GraphedDenoiser(denoise, capture=Recorder())
    for seed, step in ((0, 3), (1, 5)):
        inputs = call(rows, seed=seed, step=step)
        torch.testing.assert_close(graphed(*inputs), denoise(*inputs), rtol=0, atol=0)


def test_all_calls_of_a_bucket_use_one_graph_and_earlier_results_are_not_overwritten() -> None:
    recorder = Recorder()
    graphed = GraphedDenoiser(denoise, capture=recorder)
    first = graphed(*call(8))
    copy = first.clone()
    graphed(*call(7, seed=1))
    graphed(*call(8, seed=2, step=9))
    assert recorder.shapes == [(8, 9, 4, 4)] and torch.equal(first, copy)


def test_each_shape_and_type_is_recorded_once() -> None:
    recorder = Recorder()
    graphed = GraphedDenoiser(denoise, keep=8, capture=recorder)
    for _ in range(2):
        for inputs in (call(2), call(4), call(2, side=8), call(2, dtype=torch.bfloat16)):
            graphed(*inputs)
    assert len(recorder.shapes) == 4


def test_the_graph_used_longest_ago_is_dropped() -> None:
    recorder = Recorder()
    graphed = GraphedDenoiser(denoise, keep=2, capture=recorder)
    for rows in (1, 2, 1, 4, 1, 2):
        graphed(*call(rows))
    assert [shape[0] for shape in recorder.shapes] == [1, 2, 4, 2]


def test_if_recording_fails_the_denoiser_is_called_and_the_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(fails=RuntimeError)
    graphed = GraphedDenoiser(denoise, capture=recorder)
    with caplog.at_level(logging.WARNING, logger=cuda_graphs.__name__):
        for seed in (0, 1):
            torch.testing.assert_close(graphed(*call(3, seed=seed)), denoise(*call(3, seed=seed)), rtol=0, atol=0)
    assert len(recorder.shapes) == 1
    assert [record.message.count("not permitted when stream is capturing") for record in caplog.records] == [1]


def test_an_out_of_memory_error_while_recording_reaches_the_caller() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        GraphedDenoiser(denoise, capture=Recorder(fails=torch.OutOfMemoryError))(*call(2))


def test_an_out_of_memory_error_behind_a_broken_capture_is_raised_and_drops_the_other_graphs() -> None:
    recorder = Recorder()
    graphed = GraphedDenoiser(denoise, capture=recorder)
    graphed(*call(2))

    def broken(denoise: Any, examples: Any) -> Captured:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    graphed.capture = broken
    with pytest.raises(torch.OutOfMemoryError):
        graphed(*call(4))
    assert not graphed._graphs


def test_threads_use_a_graph_one_after_the_other() -> None:
    graphed = GraphedDenoiser(denoise, capture=Recorder())
    wrong: list[int] = []

    def work(seed: int) -> None:
        for step in range(8):
            inputs = call(4, seed=seed, step=step)
            if not torch.equal(graphed(*inputs), denoise(*inputs)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_fewer_than_one_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="keep must be >= 1"):
        GraphedDenoiser(denoise, keep=0)


@needs_cuda
def test_a_graph_of_the_unet_equals_the_unet(random_inpainter: str) -> None:
    from monai_diffaug.models.inpainter import load_inpainter
    from monai_diffaug.models.registry import ModelSpec

    model = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cuda"))
    graphed = GraphedDenoiser(model.denoise)
    for seed, rows in ((0, 4), (1, 4), (2, 7), (3, 8), (4, 4)):
        latents, step, _ = call(rows, side=16, seed=seed, step=100 * seed + 1)
        context = model.encode_text([f"text {seed} {row}" for row in range(rows)])
        inputs = latents.cuda(), step.cuda(), context
        with torch.no_grad():
            torch.testing.assert_close(graphed(*inputs), model.denoise(*inputs), rtol=1e-4, atol=1e-5)
    assert all(captured is not None for captured in graphed._graphs.values()) and len(graphed._graphs) == 2


@needs_cuda
def test_a_denoiser_that_cannot_be_recorded_is_called_and_the_device_still_works(caplog: pytest.LogCaptureFixture) -> None:
    def reads(latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        return latents * float(timestep)

    graphed = GraphedDenoiser(reads)
    latents, step, context = (tensor.cuda() for tensor in call(2))
    with caplog.at_level(logging.WARNING, logger=cuda_graphs.__name__):
        assert torch.equal(graphed(latents, step, context), latents * 3)
    assert len(caplog.records) == 1 and torch.equal(torch.ones(2, device="cuda") + 1, torch.full((2,), 2.0, device="cuda"))


@needs_cuda
def test_an_edit_of_a_compiled_model_on_a_gpu_replays_graphs(random_inpainter: str) -> None:
    from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

    image, mask = torch.rand(1, 64, 64), torch.zeros(1, 64, 64)
    mask[:, 20:40, 20:40] = 1
    options: dict[str, Any] = {"num_inference_steps": 2, "device": "cuda"}
    plain = DiffusionLocalInpaint(random_inpainter, **options).apply(image, mask, "a cyst", seed=1).image
    compiled = (
        DiffusionLocalInpaint(random_inpainter, options=InpaintOptions(run=Run(compile=True)), **options)
        .apply(image, mask, "a cyst", seed=1)
        .image
    )
    torch.testing.assert_close(torch.as_tensor(compiled), torch.as_tensor(plain), rtol=0, atol=1e-3)


def test_a_graph_recorded_in_inference_mode_also_works_in_a_training_step() -> None:
    graphed = GraphedDenoiser(denoise, capture=Recorder())
    with torch.inference_mode():
        first = graphed(*call(4)).clone()
    with torch.no_grad():
        assert torch.equal(graphed(*call(4)), first)
