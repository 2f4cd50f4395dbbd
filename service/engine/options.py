"""How one engine is deployed: the numbers that a manifest must not hold."""

from dataclasses import dataclass
from pathlib import Path

from service.engine.providers import DeviceOptions


@dataclass(frozen=True)
class EngineOptions:
    """Built from the settings by `api.app`, or by hand in Python; the engine never reads the environment."""

    models: Path
    """The folder of `<name>/<version>/` folders. It may be read-only."""

    providers: tuple[str, ...] = ("auto",)
    """Execution providers by preference: `auto`, `tensorrt`, `cuda`, `webgpu`, `cpu`. `auto` takes the first of these
    four that is installed and works; a provider that is named outright must work, or the model is refused."""

    lanes: int | None = None
    """Worker threads per model. None measures at load; set it to pin a deployment or to share cores on purpose."""

    threads_per_lane: int | None = None
    """Threads inside one run. None measures at load. lanes x threads_per_lane should not exceed the CPU quota."""

    max_batch: int = 32
    """Rows in one run, at most. The measured knee may be lower; beyond 32 rows no CPU and few GPUs gain anything."""

    max_queue_rows: int = 1024
    """Rows that wait per model. Beyond it requests are refused at once, with the time after which to come again.
    Choose it as the rows served in the longest wait that callers still find useful."""

    max_images: int = 64
    """Images in one request: bounds one caller's share of the queue and the size of one answer."""

    max_motion_frames: int = 240
    """Frames of one animation: bounds the time that one request may take. 240 are ten seconds at 24 a second."""

    poll_models_s: float | None = 2.0
    """Seconds between looks for new model folders; None looks only when `load` is called."""

    versions_kept: int = 2
    """Newest versions of each model that are served at once, so that a pinned `name@1` outlives the arrival of 2."""

    memory_budget_bytes: int | None = None
    """Most bytes of all models' weights in memory, as their graphs' files have them, once for each session. Beyond it
    the model that was asked for longest ago gives way, until somebody asks for it again. Working memory comes on top:
    about as much again for small models. None: all models stay."""

    load_on_demand: bool = False
    """Whether models are left on the disk until somebody asks for them: a start in no time, a first answer that waits
    for the load."""

    watch_models: bool = False
    """Whether the system tells of changes in the models' folder (through `watchfiles`), besides looking every
    `poll_models_s`: new versions serve some tenths of a second sooner. Not on network disks, which do not tell."""

    run_timeout_s: float = 10.0
    """Seconds below which no run is held to hang. Above it: 50 times what so many rows were measured to take at load.
    A run beyond both is ended and its requests fail; choose it longer than the slowest honest run under full load."""

    device_memory_bytes: int | None = None
    """Most GPU memory of one session's arena (CUDA) or workspace (TensorRT). None: all there is. Set it where several
    models or processes share a device; a batch that does not fit is split. With it a lane's shapes share one session,
    and each change of shape takes its time."""

    fp16: bool = False
    """Whether TensorRT computes in half precision: about twice as fast, and pixels may differ by a few levels from
    other providers', so that the same seed is no longer the same bits there."""

    profile_s: float = 1.0
    """Seconds, at most, that measuring one model at load may take. 0 measures nothing: one thread per lane, a lane per
    core, batches up to `max_batch`; whether rows are independent is checked all the same."""

    cache: Path | None = None
    """A writable folder for measured plans, keyed by model, machine and provider; None measures at every start."""

    devices: tuple[int, ...] | None = None
    """NVIDIA devices to use, as CUDA numbers them; each gets lanes of its own. None: all that the driver shows. Set it
    to leave some to other processes, or, where they are of several kinds, to choose."""

    shrink_after_s: float | None = 10.0
    """Seconds without a request after which a model's memory beyond its weights is given back; None keeps it. The next
    request pays some milliseconds to have it again. Shorter where models share a device or a small machine."""

    load_timeout_s: float = 120.0
    """Seconds that one step of loading (reading, making a session, one run) may take before the model is refused.
    Longer on slow disks, and up to an hour where TensorRT has large engines to build."""

    tile_side: int = 256
    """Pixels of the windows that large pictures are run in; more where the graph reaches farther."""

    max_whole_pixels: int = 1_000_000
    """Pixels of a picture for a graph that needs it whole: bounds the time and memory of one run."""

    max_result_pixels: int = 64_000_000
    """Pixels of an enlarged picture."""

    @property
    def device(self) -> DeviceOptions:
        """For the providers."""
        return DeviceOptions(self.device_memory_bytes, self.fp16, self.cache, self.devices)

    def __post_init__(self) -> None:
        for name in (
            "lanes",
            "threads_per_lane",
            "max_batch",
            "max_queue_rows",
            "max_images",
            "max_motion_frames",
            "versions_kept",
            "device_memory_bytes",
            "memory_budget_bytes",
            "tile_side",
            "max_whole_pixels",
            "max_result_pixels",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is below 1")
        for name in ("poll_models_s", "shrink_after_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: {value} is not above 0; None turns it off")
        for name in ("run_timeout_s", "load_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not above 0")
        if self.devices is not None and (not self.devices or min(self.devices) < 0):
            raise ValueError(f"devices: {self.devices} are no device numbers from 0; None takes all")
        if self.profile_s < 0:
            raise ValueError(f"profile_s: {self.profile_s} is below 0")
        if not self.providers:
            raise ValueError("providers: name at least one, e.g. auto or cpu")
