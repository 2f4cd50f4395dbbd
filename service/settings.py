"""Every knob of the server: each is a field here, a variable `GANYMEDE_<FIELD>` and a flag `--<field>` of `serve`.

This is the only module that reads the environment. docs/settings.md lists the same fields; a test keeps it so.
"""

import difflib
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

PREFIX = "GANYMEDE_"
PROVIDERS = ("auto", "tensorrt", "cuda", "webgpu", "cpu")


class Settings(BaseModel):
    """The server's settings. Flags go before the environment, the environment before the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Path = Field(
        Path("models"),
        description="Folder that holds `<name>/<version>/` of every model. May be read-only.",
    )
    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. The default is this machine alone; `0.0.0.0` in a container.",
    )
    port: int = Field(8000, ge=0, le=65535, description="TCP port. 0 takes a free one and prints it.")
    admin: bool = Field(
        False,
        description="Whether `POST /models/{name}/load` and `/unload` answer. On only where the port is not public.",
    )
    keys: SecretStr | None = Field(
        None,
        description="API keys as hashes: lines that `python -m service key` makes, parted by `;`. With any, every call "
        "but health, metrics and static pages needs one.",
    )
    keys_file: Path | None = Field(
        None,
        description="File of such lines. Read again within 2 seconds of a change: keys come and go without a restart.",
    )
    rate_per_s: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Requests a second for each key, or address where there are no keys; beyond it 429. A key's line "
        "may say otherwise. Unset: no limit.",
    )
    rate_burst: float | None = Field(
        None,
        ge=1,
        le=1e6,
        description="Requests that may come at once before `rate_per_s` counts. Unset: one second's.",
    )
    fair: bool = Field(
        False,
        description="Whether clients (keys, or addresses) take turns in the queue: who asks for more than others waits "
        "for itself.",
    )
    forwarded: bool = Field(
        False,
        description="Whether a client's address is the last of `X-Forwarded-For`. On only behind a balancer that "
        "writes it.",
    )
    hosts: tuple[str, ...] = Field(
        (),
        description="Names that this server answers to, comma-separated, `*.example.org` for all below one; others get "
        "421. Unset: all.",
    )
    origins: tuple[str, ...] = Field(
        (),
        description="Origins whose scripts may use the API (CORS), comma-separated: `https://app.example.org`, or `*`. "
        "Unset: none.",
    )
    security_headers: bool = Field(
        False,
        description="Whether every answer forbids browsers to guess its type, to frame it and to send referrers.",
    )
    playground: bool = Field(
        True, description="Whether the pages at `/` and `/docs` are served. Turn off for a pure API."
    )

    lanes: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Worker threads per model. Unset: chosen from the cores that the process may use.",
    )
    threads_per_lane: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="ONNX Runtime threads in each lane. Unset: chosen with `lanes`. lanes x threads at most the cores.",
    )
    providers: tuple[str, ...] = Field(
        ("auto",),
        description="Execution providers by preference, comma-separated: `tensorrt`, `cuda`, `webgpu`, `cpu`. "
        "`auto` takes the first that works; one that is named must work.",
    )
    max_batch: int = Field(
        32,
        ge=1,
        le=4096,
        description="Most rows in one run. The measured knee may be lower; more than 32 gains little anywhere.",
    )
    max_queue_rows: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="Most rows waiting per model; beyond it 429. About rows per second x seconds a caller will wait.",
    )
    max_images: int = Field(
        64, ge=1, le=4096, description="Most images in one request. Bounds a response's memory: rows x picture bytes."
    )
    max_motion_frames: int = Field(
        240, ge=2, le=10_000, description="Most frames of one animation. Bounds the time that one request may take."
    )
    poll_models_s: float | None = Field(
        2.0,
        gt=0,
        le=3600,
        description="Seconds between looks for new model folders. Longer on slow network disks; `none` never looks: "
        "only `/load` (and `watch_models`) brings new versions.",
    )

    watch_models: bool = Field(
        False,
        description="Whether the system tells of changes in the models' folder, besides looking every `poll_models_s`. "
        "Sooner by a second; not on network disks, which do not tell.",
    )
    load_on_demand: bool = Field(
        False,
        description="Whether a model stays on the disk until it is asked for. The first answer waits for the load.",
    )
    memory_budget_bytes: int | None = Field(
        None,
        ge=1,
        description="Most bytes of all models' weights in memory; beyond it the one used longest ago gives way until "
        "it is asked for again. Half of the memory there is: working memory comes on top. Unset: all stay.",
    )

    versions_kept: int = Field(
        2,
        ge=1,
        le=100,
        description="Newest versions of each model served at once, so that a pinned `name@1` outlives a new `name@2`.",
    )
    run_timeout_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Seconds below which no run is held to hang (above: 50 x its measured time). A hung run is ended.",
    )
    device_memory_bytes: int | None = Field(
        None,
        ge=1,
        description="Most GPU memory of one session in bytes. Set it where models share a device: then each has one "
        "session. Unset: all there is.",
    )
    devices: tuple[int, ...] | None = Field(
        None,
        description="NVIDIA devices to use, by CUDA's numbers, such as `0,1`; each gets lanes of its own. Unset: all.",
    )
    shrink_after_s: float | None = Field(
        10.0,
        gt=0,
        le=86400,
        description="Seconds without a request after which a model gives back its working memory; `none` keeps it. "
        "The next request pays milliseconds to have it again.",
    )
    load_timeout_s: float = Field(
        120.0,
        gt=0,
        le=86400,
        description="Seconds that one step of loading (reading, making a session, one run) may take before the model "
        "is refused. An hour where TensorRT builds large engines.",
    )
    fp16: bool = Field(
        False,
        description="Whether TensorRT computes in half precision: faster, but no longer the same bits for a seed.",
    )
    profile_s: float = Field(
        1.0,
        ge=0,
        le=60,
        description="Most seconds to measure one model at load; on a GPU twice where rows depend on each other. "
        "0 measures nothing: a one-thread lane per core.",
    )
    cache: Path | None = Field(
        None,
        description="Writable folder for measured plans: faster starts. Unset: measured at every start.",
    )

    timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Deadline in seconds of a request that names none (`X-Request-Timeout-Ms`). "
        "A little below the balancer's own timeout.",
    )
    max_body_bytes: int = Field(
        1 << 20,
        ge=1024,
        le=1 << 30,
        description="Largest JSON body in bytes; beyond it 413. 1 MiB holds about 50,000 latent values.",
    )
    drain_delay_s: float = Field(
        2.0,
        ge=0,
        le=600,
        description="Seconds between SIGTERM (readiness turns 503) and closing the port. "
        "At least the balancer's probe period x its failure threshold.",
    )
    drain_timeout_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="Seconds that accepted requests get to finish after the port is closed. "
        "With `drain_delay_s` below the orchestrator's kill timeout.",
    )
    keep_alive_s: float = Field(
        75.0,
        ge=1,
        le=3600,
        description="Seconds that an idle connection stays open. Longer than the balancer keeps its own.",
    )

    encode_threads: int = Field(
        2,
        ge=1,
        le=64,
        description="Threads that encode pictures, and decode uploads. The cores left over by the lanes, at least 1.",
    )
    jpeg_quality: int = Field(
        90, ge=1, le=95, description="JPEG quality. 90 is hard to tell from the original; 75 is half the bytes."
    )
    webp_quality: int = Field(
        90, ge=1, le=100, description="WebP quality. As for JPEG, at about two thirds of the bytes."
    )
    provenance: bool = Field(
        True,
        description="Whether pictures carry the machine-readable AI mark and their recipe (some 600 bytes).",
    )
    cache_s: int = Field(
        60,
        ge=0,
        le=31_536_000,
        description="Seconds that `GET /generate` of an unpinned model may be cached. 0 to ask again every time; "
        "pinned ones (`name@version`) never change and are cached for a year.",
    )

    log_format: Literal["text", "json"] = Field(
        "text", description="`text` for a terminal, `json` for a log collector."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe message logged.")
    access_log: bool = Field(True, description="One line per request. Off saves about 20 microseconds a request.")

    max_upload_bytes: int = Field(
        32 << 20,
        ge=1024,
        le=1 << 30,
        description="Largest body of `/translate`, `/upscale` and `/project` in bytes; beyond it 413. "
        "Phones send up to 16 MiB. All uploads together may hold 16 times as much.",
    )
    max_pixels: int = Field(
        40_000_000,
        ge=1,
        le=178_000_000,
        description="Most pixels of an uploaded image, read from its header. Each takes about 8 bytes while decoding; "
        "4 times as many are decoded at once.",
    )
    max_side: int = Field(
        16_384, ge=1, le=65_535, description="Longest side of an uploaded image in pixels. Cameras stay below 16384."
    )
    max_aspect: int = Field(
        5_000, ge=1, le=65_535, description="Most that an uploaded image's longer side may be of its shorter one."
    )
    max_frames: int = Field(
        1_000, ge=1, le=100_000, description="Most frames of an uploaded animation, of which the first is used."
    )
    max_profile_bytes: int = Field(
        4 << 20,
        ge=0,
        le=1 << 28,
        description="Most bytes of an upload's colour profile, and of its other metadata. Press profiles have 2 MiB.",
    )
    max_result_pixels: int = Field(
        64_000_000,
        ge=1,
        le=1_000_000_000,
        description="Most pixels of an upscaled result, and of all frames of an animation. Large PNGs stream; JPEG and "
        "WebP are held whole, 8 bytes each.",
    )
    max_whole_pixels: int = Field(
        1_000_000,
        ge=1,
        le=1_000_000_000,
        description="Most pixels that a model without seamless tiles is run on at once; beyond it 413. Bounds a run.",
    )
    tile_side: int = Field(
        256,
        ge=16,
        le=8192,
        description="Side in pixels of a large image's tiles. Larger wastes less at the seams, smaller waits less.",
    )

    @property
    def with_keys(self) -> bool:
        """Whether keys are asked for."""
        return self.keys is not None or self.keys_file is not None

    @model_validator(mode="before")
    @classmethod
    def _from_environment(cls, given: dict[str, Any]) -> dict[str, Any]:
        variables = {name.upper(): value for name, value in os.environ.items()}
        found = {
            name: variables[PREFIX + name.upper()] for name in cls.model_fields if PREFIX + name.upper() in variables
        }
        return {**found, **given}

    @field_validator("providers", "devices", "hosts", "origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("devices")
    @classmethod
    def _numbers(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or min(value) < 0):
            raise ValueError("device numbers are whole numbers from 0, such as `0,1`")
        return None if value is None else tuple(dict.fromkeys(value))

    @field_validator("providers")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("names no provider; `auto` takes the best one that works")
        if unknown := [name for name in value if name not in PROVIDERS]:
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(PROVIDERS)}")
        return value

    @field_validator("keys_file", mode="before")
    @classmethod
    def _names_a_file(cls, value: object) -> object:
        # Unlike other settings: a variable that came out empty would open the server to everybody.
        if isinstance(value, str) and not value.strip():
            raise ValueError("names no file; leave it out where no keys shall be asked for")
        return None if isinstance(value, str) and value.lower() == "none" else value

    @field_validator(
        "lanes",
        "threads_per_lane",
        "poll_models_s",
        "rate_per_s",
        "rate_burst",
        "cache",
        "device_memory_bytes",
        "memory_budget_bytes",
        "devices",
        "shrink_after_s",
        mode="before",
    )
    @classmethod
    def _unset(cls, value: object) -> object:
        return None if isinstance(value, str) and value.lower() in ("", "none", "auto") else value


def unknown_variables() -> dict[str, str | None]:
    """Variables that begin with `GANYMEDE_` but are no setting, each with the nearest setting's variable.

    A misspelt variable would otherwise be ignored in silence.
    """
    given = {name: name.upper().removeprefix(PREFIX) for name in os.environ if name.upper().startswith(PREFIX)}
    known = [name.upper() for name in Settings.model_fields]
    near = {name: difflib.get_close_matches(field, known, n=1) for name, field in given.items() if field not in known}
    return {name: PREFIX + fields[0] if fields else None for name, fields in near.items()}
