"""Every response body."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Problem(BaseModel):
    """An error, as RFC 9457 writes it."""

    type: str = Field(description="What kind of problem: `urn:ganymede:problem:<code>`.")
    title: str
    status: int
    detail: str = Field(description="One sentence for a person.")
    instance: str = Field(description="The request's path.")
    request_id: str
    field: str | None = Field(None, description="The wrong field, as the caller wrote it.")
    allowed: list[str | int] | None = Field(None, description="What would be right.")
    errors: list[dict[str, str]] | None = Field(None, description="Each wrong field: `detail` and `pointer`.")
    reason: str | None = Field(None, description="A short fixed word where the service refuses for now.")


class DrawnImage(BaseModel):
    """One picture of a JSON answer, with all that was steered in the request's words."""

    model_config = ConfigDict(extra="allow")

    seed: int | None = Field(description="Null where latents or a mix were given.")
    label: str | dict[str, float] | None = Field(description="Null for an unconditional model.")
    media_type: str
    b64: str = Field(description="The file, base64.")
    latent: str | list[Any] | None = Field(None, description="Where `return_latents` asks for it; goes into `latents`.")


class GenerateResponse(BaseModel):
    """Several pictures as JSON."""

    model: str = Field(description="`name@version`")
    truncation: float
    space: str | None = Field(None, description="Of the latents, where they come along: `z` or `w+`.")
    images: list[DrawnImage]
    timings: dict[str, float] = Field(description="Seconds per stage: queue_s, run_s, encode_s; and batch_rows.")


class ImageShape(BaseModel):
    """A picture's size in pixels; a size is null where the model leaves it open."""

    height: int | None
    width: int | None
    channels: int | None


class ProjectPage(BaseModel):
    """What a model's encoder answers with, and how often it may look."""

    space: Literal["z", "w", "w+"]
    passes: int = Field(description="Most passes.")


class Drawing(BaseModel):
    """A picture inside of JSON."""

    media_type: str
    b64: str


class ProjectResponse(BaseModel):
    """A picture's latent, and what it draws."""

    model: str = Field(description="`name@version`")
    space: Literal["z", "w+"]
    latent: str | list[Any] = Field(description="Goes into `latents` of `/generate`, with `space`.")
    label: str | None = Field(description="Null for an unconditional model.")
    passes: int
    psnr_db: float = Field(description="Of the reconstruction to the picture, brought to the model's size; 99: equal.")
    reconstruction: Drawing
    timings: dict[str, float]


class SteeringPage(BaseModel):
    """What can be asked of a model's latents."""

    spaces: list[str] = Field(description="`z`; and `w` and `w+` of a model with styles.")
    style_layers: int | None
    style_dim: int | None
    mix: Literal["z", "w"] = Field(description="Where mixes are made.")
    class_mix: bool
    noise: list[str] = Field(description="Modes; empty for a model that takes none.")
    directions: list[str]
    project: ProjectPage | None = Field(description="What `POST /project` finds; null without an encoder.")


class ModelSummary(BaseModel):
    """A loaded model, as `GET /models` lists it."""

    name: str
    version: int
    ref: str = Field(description="`name@version`")
    tasks: list[str]
    family: str
    image: ImageShape
    labels: list[str] | None = Field(description="The classes in index order; null if unconditional.")
    latent_dim: int | None
    truncation: bool
    mask: bool = Field(description="Whether `/translate` takes a mask.")
    steering: "SteeringPage | None" = Field(description="What its latents can be asked for; null if it draws none.")
    license: str
    paper: str
    state: str
    links: dict[str, str]


class ModelPage(ModelSummary):
    """A loaded model in full."""

    providers: list[str]
    provider_notes: list[str] = Field(
        description="Why no better provider runs it, why rows run apart or by other algorithms, and what was done "
        "for lack of memory."
    )
    plans: dict[str, dict[str, Any]] = Field(description="Lanes, threads and batch cap chosen here for each graph.")
    loaded_at: str
    manifest: dict[str, Any]


class ModelList(BaseModel):
    """All loaded models, those that are loaded when asked for, and the folders that failed verification with the
    reason."""

    models: list[ModelSummary]
    asleep: list[str]
    refused: dict[str, str]


class Health(BaseModel):
    """What `/livez` and `/readyz` say."""

    state: Literal["alive", "loading", "ready", "draining", "failed", "no-models"]
    models: list[str] | None = None
    refused: dict[str, str] | None = None
