"""What `plan` says of services as matrices: which fields can lose digits in the cast to float32, which have no cast."""

from __future__ import annotations

from featurestore.dtypes import Bool, DType, Float32, Float64, Int32, Int64, String, Vector
from featurestore.field import Field
from featurestore.registry.definitions import Definitions
from featurestore.registry.validate_field import lower_bound, upper_bound

#: Every integer up to 2^24 is a float32.
EXACT_MAX = 1 << 24


def matrix_notes(definitions: Definitions) -> tuple[str, ...]:
    """One text for each service that has such fields."""
    notes = []
    for name, service in sorted(definitions.services.items()):
        fields = {
            selected.output: definitions.views[f"{chosen.view}@{chosen.version}"].fields[selected.field]
            for chosen in service.selections
            for selected in chosen.fields
        } | {field.name: field for field in service.request_fields}
        lossy = [f"{column} ({field.dtype})" for column, field in fields.items() if loses_digits(field)]
        refused = [f"{column} ({field.dtype})" for column, field in fields.items() if not has_cast(field)]
        if lossy:
            notes.append(f"feature service {name}: as float32 in the matrix these can lose digits: {', '.join(lossy)}")
        if refused:
            notes.append(f"feature service {name}: the matrix has no place for {', '.join(refused)}")
    return tuple(notes)


def loses_digits(field: Field) -> bool:
    """Whether some value of the field has no exact float32; bounds that keep integers small are believed."""
    element = _element(field.dtype)
    if element == Float64:
        return True
    if element not in (Int32, Int64):
        return False
    lower, upper = lower_bound(field), upper_bound(field)
    return lower is None or upper is None or lower[0] < -EXACT_MAX or upper[0] > EXACT_MAX


def has_cast(field: Field) -> bool:
    """Whether the field can stand in the matrix."""
    if field.dtype == String:
        return field.allowed_values is not None
    return _element(field.dtype) in (Bool, Int32, Int64, Float32, Float64)


def _element(dtype: DType) -> DType:
    return dtype.element if isinstance(dtype, Vector) else dtype
