"""The types of settings that several tables use."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Seconds = Annotated[float, Meta(ge=0)]
Interval = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
VariableName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z", max_length=256)]
VariableNames = Annotated[list[VariableName], Meta(max_length=1000)]
