"""The Grafana dashboards as Grafana reads them, and their queries as Prometheus gets them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "grafana"
FILES = sorted((FOLDER / "dashboards").glob("*.json"))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Source(_Strict):
    """The data source that a panel or a query asks."""

    type: Literal["prometheus"]
    uid: str


class Place(_Strict):
    """Where a panel lies on the grid of 24 columns."""

    h: int = Field(ge=1)
    w: int = Field(ge=1, le=24)
    x: int = Field(ge=0, le=23)
    y: int = Field(ge=0)


class Target(_Strict):
    """One query of a panel."""

    refId: str = Field(pattern="^[A-Z]$")
    datasource: Source
    expr: str = Field(min_length=1)
    legendFormat: str
    range: bool = False
    instant: bool = False
    format: Literal["time_series", "table", "heatmap"] = "time_series"


class Defaults(_Strict):
    """How values are shown."""

    unit: str
    min: float | None = None
    custom: dict[str, Any] = {}
    thresholds: dict[str, Any] | None = None


class FieldConfig(_Strict):
    """Of one panel."""

    defaults: Defaults
    overrides: list[dict[str, Any]]


class Panel(_Strict):
    """A panel with queries."""

    id: int = Field(ge=1)
    type: Literal["timeseries", "stat", "table", "heatmap"]
    title: str = Field(min_length=1)
    description: str
    datasource: Source
    gridPos: Place
    fieldConfig: FieldConfig
    options: dict[str, Any]
    targets: list[Target] = Field(min_length=1)
    transformations: list[dict[str, Any]] = []


class Row(_Strict):
    """A heading; panels lie under it, not in it, unless it is collapsed."""

    id: int = Field(ge=1)
    type: Literal["row"]
    title: str = Field(min_length=1)
    collapsed: Literal[False]
    gridPos: Place
    panels: list[Any] = Field(max_length=0)


class Query(_Strict):
    """A variable's."""

    query: str
    refId: str


class Variable(_Strict):
    """A choice atop the dashboard."""

    name: str = Field(pattern="^[a-z]+$")
    label: str
    type: Literal["query"]
    datasource: Source
    query: Query
    definition: str
    refresh: Literal[1, 2]
    sort: int
    multi: bool
    includeAll: Literal[True]
    allValue: Literal[".*"]
    current: dict[str, Any]
    options: list[Any] = Field(max_length=0)


class Templating(_Strict):
    """The variables."""

    list: list[Variable]


class Annotation(_Strict):
    """Marks along the time axis."""

    name: str
    datasource: Source
    enable: bool
    iconColor: str
    expr: str
    titleFormat: str
    step: str


class Annotations(_Strict):
    """All of them."""

    list: list[Annotation]


class Dashboard(_Strict):
    """A dashboard's JSON as far as these files use Grafana's schema 39; a field that is not here is a slip."""

    uid: str = Field(pattern="^[a-z0-9-]{1,40}$")
    title: str
    description: str
    tags: list[str]
    schemaVersion: Literal[39]
    version: int
    editable: bool
    graphTooltip: Literal[0, 1, 2]
    refresh: str
    time: dict[str, str]
    timezone: str
    annotations: Annotations
    links: list[dict[str, Any]]
    templating: Templating
    panels: list[Panel | Row]

    def shown(self) -> list[Panel]:
        """The panels without the headings."""
        return [panel for panel in self.panels if isinstance(panel, Panel)]

    def sources(self) -> Iterator[Source]:
        """Whatever asks a data source."""
        yield from (annotation.datasource for annotation in self.annotations.list)
        yield from (variable.datasource for variable in self.templating.list)
        for panel in self.shown():
            yield panel.datasource
            yield from (target.datasource for target in panel.targets)

    def queries(self) -> list[tuple[str, str]]:
        """Each panel's title and one of its queries with variables in place: every replica, every model, 20 seconds."""
        known = {variable.name: variable.allValue for variable in self.templating.list}
        found = []
        for panel in self.shown():
            for target in panel.targets:
                text = target.expr.replace("$__rate_interval", "20s")
                for name, value in known.items():
                    text = text.replace(f"${name}", value)
                if "$" in text:
                    raise ValueError(f"{panel.title}: a variable that the dashboard does not have: {text}")
                found.append((panel.title, text))
        return found


def dashboards() -> dict[str, Dashboard]:
    """Every dashboard by its file's name.

    Raises:
        pydantic.ValidationError: one is not as Grafana reads it.
    """
    return {path.name: Dashboard.model_validate(json.loads(path.read_text())) for path in FILES}
