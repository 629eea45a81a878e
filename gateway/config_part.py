"""What all parts of `holdfast.yaml` have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


def wrong(message: str, hint: str) -> PydanticCustomError:
    """A value error with what to write instead; never quotes the value, which may be a secret."""
    return PydanticCustomError("wrong", "{message}", {"message": message, "hint": hint})


class Part(BaseModel):
    """A frozen piece of the configuration. Unknown fields are errors: a typing slip must not be a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, data: Any) -> Any:
        """Take `keys:` with nothing below it as not written; an unknown field stays an error."""
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None or name not in cls.model_fields}
