"""The fields of KServe's API types, from its own package, printed as JSON by the type's name."""

from __future__ import annotations

import json

from kserve import models

TYPES = (
    "V1alpha1ServingRuntime",
    "V1alpha1ServingRuntimeSpec",
    "V1alpha1StorageHelper",
    "V1alpha1SupportedModelFormat",
    "V1beta1InferenceService",
    "V1beta1InferenceServiceSpec",
    "V1beta1ModelFormat",
    "V1beta1ModelSpec",
    "V1beta1ModelStorageSpec",
    "V1beta1PredictorSpec",
)


def fields(name: str) -> dict[str, str]:
    """Each field's name in a manifest, and its type."""
    described = getattr(models, name)
    return {described.attribute_map[key]: kind for key, kind in described.openapi_types.items()}


print(json.dumps({name: fields(name) for name in TYPES}))
