"""How many workers a job has."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, model_serializer, model_validator

from clara_dist.config.base import Config


class WorkerRange(Config):
    """A pool of workers, written ``4``, or ``1:8`` for one whose size depends on the work and on the cluster's room.

    Attributes:
        least: Workers at least, with which the job starts.
        most: Workers at most.
    """

    least: int = Field(ge=1)
    most: int = Field(ge=1)

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"least": value, "most": value}
        if isinstance(value, str):
            match = re.fullmatch(r"(\d+)(?::(\d+))?", value.strip())
            if match is None:
                raise ValueError(f"{value!r} is neither a number of workers nor MIN:MAX")
            return {"least": int(match[1]), "most": int(match[2] or match[1])}
        return value

    @model_validator(mode="after")
    def _in_order(self) -> WorkerRange:
        if self.least > self.most:
            raise ValueError(f"{self.least}:{self.most} ends below its start")
        return self

    @model_serializer
    def _as_written(self) -> int | str:
        return self.most if self.least == self.most else str(self)

    def __str__(self) -> str:
        return f"{self.most}" if self.least == self.most else f"{self.least}:{self.most}"
