"""A session: one loaded ONNX file, rows in, as many rows out. `Session` is the seam; `OrtSession` is ONNX Runtime's."""

import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from service.engine.providers import (
    OUTPUT_DEVICES,
    PROVIDERS,
    DeviceOptions,
    arenas,
    candidates,
    device_ids,
    provider_list,
)
from service.errors import GoldenMismatch, GraphMismatch, ProviderUnavailable, RunFailed
from service.manifest import GraphSpec, TensorSpec, resolve_dimension

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

IMAGE_LEVELS = 1
"""Pixels may differ by one level from the recorded ones: instruction sets round differently in the last bit..."""
IMAGE_SHARE = 1e-4
"""... and one value in 10,000 by more, where a last bit flips a rounding twice."""
FLOAT_RELATIVE = 1e-3

LOADING_S = 120.0
"""Seconds for which a session that is made in the middle of a run is waited for, before that too is held to hang."""

_COUNT = {1: "one", 4: "four"}
_ORT_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)", "int64": "tensor(int64)"}
_DTYPES = {"uint8": np.dtype(np.uint8), "float32": np.dtype(np.float32), "int64": np.dtype(np.int64)}

log = logging.getLogger(__name__)

_WEBGPU = threading.Lock()
"""All WebGPU sessions of a process share a device and its encoder, unguarded: what two of them do at the same time ends
in a validation error, seen with onnxruntime-webgpu 1.27."""


def _turn(provider: str) -> contextlib.AbstractContextManager[object]:
    """Held while a session is made or runs."""
    return _WEBGPU if provider == "webgpu" else contextlib.nullcontext()


class Watch:
    """What a lane's thread and whoever watches it know of one job between them.

    Args:
        endable: whether another thread may come to end the run.

    Attributes:
        calls: session calls begun so far; while it grows the job moves.
        terminated: the run was told to end.
        abandoned: it did not, and its lane was given up.
    """

    def __init__(self, endable: bool = True) -> None:
        self.options: ort.RunOptions | None = ort.RunOptions() if endable else None
        self.calls = 0
        self.terminated = False
        self.abandoned = False
        self._loading_until_s = 0.0

    @property
    def loading(self) -> bool:
        """A session is being made, which may take longer than any run, but not for ever."""
        return time.monotonic() < self._loading_until_s

    @loading.setter
    def loading(self, value: bool) -> None:
        self._loading_until_s = time.monotonic() + LOADING_S if value else 0.0

    def terminate(self) -> None:
        """End the run that is under way, and those that follow, as soon as the graph's next node would begin."""
        self.terminated = True
        if self.options is not None:
            self.options.terminate = True


class Session(Protocol):
    """Called from worker threads, several at once. Rows lie along axis 0 and never influence one another."""

    spec: GraphSpec
    max_rows: int | None
    """Most rows that a run may hold, where memory has set a bound."""

    def run(self, inputs: Arrays, watch: Watch | None = None) -> dict[str, Array]:
        """Answer every output of the spec for these rows.

        Args:
            inputs: every input of the spec.
            watch: by which another thread may end the run.

        Raises:
            RunFailed: the run raised.
        """
        ...


class OrtSession:
    """ONNX Runtime on the best provider that works.

    Args:
        path: the `.onnx` file; its hash has been checked.
        spec: what the manifest says of it.
        model: `name@version`, for errors.
        providers: by preference; see `EngineOptions.providers`.
        threads: threads inside one run (intra-op); on a GPU, of what stays on the CPU.
        device: memory, precision and caches of the providers that have them, and which devices to choose from.
        device_id: which of the provider's devices; None takes the first of those to choose from.
        watch: counts and may end the runs that come without a watch of their own: those made while loading.

    Attributes:
        provider: what was really obtained: `tensorrt`, `cuda`, `webgpu` or `cpu`.
        device_id: which of that provider's devices.
        search: how cuDNN chooses its algorithms, where not as usual.
        why: one line for each better provider that was not obtained.

    Raises:
        GraphMismatch: ONNX Runtime cannot load the graph, or its inputs or outputs are not the manifest's.
        ProviderUnavailable: a provider asked by name did not work.
    """

    max_rows: int | None = None

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        *,
        model: str,
        providers: Sequence[str] = ("auto",),
        threads: int = 1,
        device: DeviceOptions | None = None,
        device_id: int | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.spec = spec
        self.model = model
        self.threads = threads
        self.watch = watch
        self.search = "" if device is None else device.search
        self._session, self.provider, self.device_id, self.why = _open(
            path, providers, threads, model, device or DeviceOptions(), device_id
        )
        self._outputs = [tensor.name for tensor in spec.outputs]
        check_signature(spec, self._session.get_inputs(), self._session.get_outputs(), model=model)

    def run(self, inputs: Arrays, watch: Watch | None = None) -> dict[str, Array]:
        """See `Session.run`. The GIL is released while ONNX Runtime computes."""
        if watch is None and self.watch is not None:
            watch = self.watch
            watch.calls += 1
        return self._answers(inputs, None if watch is None else watch.options)

    def shrink(self, inputs: Arrays) -> None:
        """Give back what the arenas hold beyond the weights: a run of its own, after which they free what is unused.

        Lanes may run meanwhile; what they use stays. Where the provider has no arena that can shrink, only the
        CPU's does.

        Args:
            inputs: the smallest run there is: one row.

        Raises:
            RunFailed: the run raised.
        """
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arenas(self.provider, self.device_id))
        self._answers(inputs, options)

    def _answers(self, inputs: Arrays, options: ort.RunOptions | None) -> dict[str, Array]:
        try:
            if self.provider in OUTPUT_DEVICES:
                with _turn(self.provider):
                    answers = self._run_bound(inputs, options)
            else:
                answers = self._session.run(self._outputs, dict(inputs), options)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise RunFailed(f"{self.model}: the run failed: {str(error).splitlines()[0][:300]}") from error
        return dict(zip(self._outputs, answers, strict=True))

    def _run_bound(self, inputs: Arrays, options: ort.RunOptions | None) -> list[Array]:
        """Run on a device: outputs stay there until the graph is done and are copied once."""
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._outputs:
            binding.bind_output(name, OUTPUT_DEVICES[self.provider], self.device_id)
        self._session.run_with_iobinding(binding, options)
        copied: list[Array] = binding.copy_outputs_to_cpu()
        return copied


def _options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # a provider that falls back is reported by us, once
    # Spinning threads hold a core while they wait: several lanes, encoders and the event loop share it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _open(
    path: Path, providers: Sequence[str], threads: int, model: str, device: DeviceOptions, device_id: int | None
) -> tuple[Any, str, int, tuple[str, ...]]:
    """Try each candidate; the first session that really got its provider wins."""
    chosen = candidates(providers)
    notes: list[str] = []
    if device.search:
        # Else ONNX Runtime warns for each convolution and shape that this choice, which was asked for, may be slow; it
        # does so through its default logger, which no session's options reach. Errors are printed as before.
        ort.set_default_logger_severity(3)
    for name in chosen.names:
        number = device_ids(name, device.ids)[0] if device_id is None else device_id
        wanted = provider_list(name, device, number)
        try:
            # Without its own fallback, which prints the reason, keeps it from us and makes another session on the CPU.
            with _turn(name):
                session = ort.InferenceSession(str(path), _options(threads), providers=wanted, enable_fallback=0)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            reason = str(error).splitlines()[0][:300]
            if name == "cpu":
                raise GraphMismatch(f"{path.name} cannot be loaded: {reason}", model=model) from error
            notes.append(f"{name}: {reason}")
            continue
        if session.get_providers()[0] == PROVIDERS[name]:
            return session, name, number, (*chosen.passed_over(name), *notes)
        notes.append(f"{name}: onnxruntime fell back to {session.get_providers()[0]}")
    notes = [*(f"{name}: {why}" for name, why in chosen.skipped.items()), *notes]
    raise ProviderUnavailable("providers: none of those asked for works: " + "; ".join(notes))


def check_signature(spec: GraphSpec, inputs: Sequence[Any], outputs: Sequence[Any], *, model: str) -> None:
    """Hold a session's real inputs and outputs (`.name`, `.type`, `.shape`) against the manifest's.

    A dimension that the manifest fixes may be open in the file (exporters lose sizes); one that the manifest leaves
    open must be open in the file, or no second row could ever be fed.

    Raises:
        GraphMismatch: names, types, ranks or sizes differ.
    """
    for side, tensors, real in (("input", spec.inputs, inputs), ("output", spec.outputs, outputs)):
        found = {node.name: node for node in real}
        if set(found) != {tensor.name for tensor in tensors}:
            listed = sorted(tensor.name for tensor in tensors)
            raise GraphMismatch(f"{spec.file} has {side}s {sorted(found)}, the manifest says {listed}", model=model)
        for tensor in tensors:
            node = found[tensor.name]
            if node.type != _ORT_TYPES[tensor.dtype]:
                detail = f"{spec.file}: {side} {tensor.name} is {node.type}, the manifest says {tensor.dtype}"
                raise GraphMismatch(detail, model=model)
            if not _shape_fits(tensor, node.shape):
                detail = (
                    f"{spec.file}: {side} {tensor.name} has shape {node.shape}, the manifest says {list(tensor.shape)}"
                )
                raise GraphMismatch(detail, model=model)


def _shape_fits(tensor: TensorSpec, real: Sequence[int | str | None]) -> bool:
    if len(real) != len(tensor.shape):
        return False
    pairs = zip(tensor.shape, real, strict=True)
    return all(not isinstance(size, int) or size == dimension for dimension, size in pairs)


def check_outputs(spec: GraphSpec, inputs: Arrays, outputs: Arrays) -> None:
    """Hold one run's answers against the spec: every output, in its dtype, as many rows as went in, finite.

    Raises:
        RunFailed: names the first output that is wrong.
    """
    symbols: dict[str, int] = {}
    for tensor in spec.inputs:
        for dimension, size in zip(tensor.shape, inputs[tensor.name].shape, strict=True):
            if isinstance(dimension, str) and "*" not in dimension:
                symbols[dimension] = size
    for tensor in spec.outputs:
        array = outputs.get(tensor.name)
        if array is None:
            raise RunFailed(f"{spec.file}: the run answered without {tensor.name}")
        if array.dtype != _DTYPES[tensor.dtype]:
            raise RunFailed(f"{spec.file}: {tensor.name} came back as {array.dtype}, must be {tensor.dtype}")
        shape = _resolve(tensor, array.shape, symbols)
        if array.shape != shape:
            raise RunFailed(f"{spec.file}: {tensor.name} came back as {list(array.shape)}, must be {list(shape)}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RunFailed(f"{spec.file}: {tensor.name} holds numbers that are not finite")


def _resolve(tensor: TensorSpec, real: tuple[int, ...], symbols: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that an output must have; a symbol that no input gives takes the size that came."""
    shape = []
    for axis, dimension in enumerate(tensor.shape):
        if isinstance(dimension, int):
            shape.append(dimension)
        elif dimension in symbols:
            shape.append(symbols[dimension])
        elif "*" not in dimension and axis < len(real):
            symbols = {**symbols, dimension: real[axis]}
            shape.append(real[axis])
        else:
            shape.append(resolve_dimension(dimension, dict(symbols)))
    return tuple(shape)


def check_golden(session: Session, golden: Arrays, *, model: str, fp16: bool = False) -> None:
    """Run the recorded inputs and hold the answers against the recorded ones; it also warms the session up.

    Images: within one level on all but one value in 10,000. Floats: within 1e-3 of the recorded value's size or of
    the tensor's root mean square, whichever is larger. Whole numbers: equal. `fp16` widens the former to four levels
    and the latter to a hundredth: half precision keeps 11 bits.

    Raises:
        GoldenMismatch: the answers differ by more.
        RunFailed: the run raised, or answered with wrong rows, shapes or values.
    """
    inputs = {tensor.name: golden[tensor.name] for tensor in session.spec.inputs}
    answers = session.run(inputs)
    check_outputs(session.spec, inputs, answers)
    for tensor in session.spec.outputs:
        if fault := _difference(tensor, answers[tensor.name], golden[tensor.name], fp16):
            raise GoldenMismatch(f"{session.spec.file}: {tensor.name} {fault}", model=model)


def _difference(tensor: TensorSpec, answer: Array, recorded: Array, fp16: bool) -> str | None:
    """What is wrong with an answer, or None."""
    levels, relative = (4 * IMAGE_LEVELS, 10 * FLOAT_RELATIVE) if fp16 else (IMAGE_LEVELS, FLOAT_RELATIVE)
    if answer.shape != recorded.shape:
        return f"has shape {list(answer.shape)}, recorded was {list(recorded.shape)}"
    if tensor.dtype == "int64":
        return None if np.array_equal(answer, recorded) else "differs from the recorded whole numbers"
    distance = np.abs(answer.astype(np.float64) - recorded.astype(np.float64))
    if tensor.dtype == "uint8":
        beyond = int((distance > levels).sum())
        if beyond <= IMAGE_SHARE * distance.size:
            return None
        most = f"differs from golden by up to {distance.max():.0f} levels"
        return f"{most}, by more than {_COUNT[levels]} on {beyond} of {distance.size}"
    size = np.maximum(np.abs(recorded), np.sqrt(np.mean(np.square(recorded, dtype=np.float64))))
    beyond = int((distance > relative * size).sum())
    if not beyond:
        return None
    return f"differs from golden by up to {distance.max():.3g}, beyond {relative:g} relative on {beyond} values"
