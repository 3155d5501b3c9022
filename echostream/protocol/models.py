"""pydantic models as payloads, where the program uses pydantic; nothing here imports it."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["dump", "is_model", "model_schema", "validate"]


def is_model(cls: Any) -> bool:
    """Whether this is a class of pydantic's models. Where pydantic was not imported, none is."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(cls, type) and issubclass(cls, pydantic.BaseModel)


def dump(model: Any) -> Any:
    """A model as what it travels as: a dict, under its aliases."""
    return model.model_dump(by_alias=True)


def validate(cls: Any, value: object) -> Any:
    """A model of what came. How strictly is the model's own affair. Raises ``ValueError`` that
    names the field, without the text of the program's own validators."""
    pydantic = sys.modules["pydantic"]
    try:
        return cls.model_validate(value)
    except pydantic.ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(map(str, first["loc"])) or cls.__name__
    own = first["type"] in ("value_error", "assertion_error")
    text = "refused by the model" if own else first["msg"]
    raise ValueError(f"`{field}`: {text}")


def model_schema(cls: Any, template: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON Schema of a model, and of what it refers to by ``template``."""
    schema = cls.model_json_schema(ref_template=template)
    return schema, schema.pop("$defs", {})
