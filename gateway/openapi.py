"""The OpenAPI 3.1 document, made of the endpoints and of the models that they really parse and answer with."""

import functools
import json
import re
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from gateway.endpoint import Endpoint

_REF = "#/components/schemas/{model}"
Schemas = dict[Any, dict[str, Any]]
"""The schema of each (model, mode)."""


@functools.cache
def document_json(endpoints: tuple[Endpoint, ...]) -> bytes:
    """The document as JSON, made once a process."""
    return json.dumps(document(list(endpoints))).encode()


def document(endpoints: list[Endpoint]) -> dict[str, Any]:
    """The document: one operation for each endpoint."""
    schemas, definitions = models_json_schema(_models(endpoints), ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.template, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Lares",
            "version": "1",
            "description": "The OpenAI-compatible gateway of Lares, with a Hugging Face Hub below /hf. Errors have"
            " the body ErrorBody; those of the Hub HubError.",
        },
        "paths": paths,
        "components": {"schemas": definitions.get("$defs", {})},
    }


def _models(endpoints: list[Endpoint]) -> list[tuple[type[BaseModel], JsonSchemaMode]]:
    found: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {}
    for endpoint in endpoints:
        for model in (endpoint.request, endpoint.form, endpoint.query):
            if model is not None:
                found[model, "validation"] = None
        for model in (endpoint.response, endpoint.stream, endpoint.error):
            if model is not None:
                found[model, "serialization"] = None
    return list(found)


def _operation(endpoint: Endpoint, schemas: Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": endpoint.summary,
        "parameters": _parameters(endpoint),
        "responses": _responses(endpoint, schemas),
    }
    if endpoint.request is not None:
        content = {"application/json": {"schema": schemas[endpoint.request, "validation"]}}
        operation["requestBody"] = {"required": True, "content": content}
    if endpoint.form is not None:
        file = {
            "type": "object",
            "properties": {"file": {"type": "string", "contentMediaType": "application/octet-stream"}},
            "required": ["file"],
        }
        schema = {"allOf": [schemas[endpoint.form, "validation"], file]}
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    return operation


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", endpoint.template)
    ]
    if endpoint.query is not None:
        schema = endpoint.query.model_json_schema()
        parameters += [
            {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": field}
            for name, field in schema["properties"].items()
        ]
    return parameters


def _responses(endpoint: Endpoint, schemas: Schemas) -> dict[str, Any]:
    success: dict[str, Any] = {"schema": {}}
    if endpoint.response is not None:
        success = {"schema": schemas[endpoint.response, "serialization"]}
    content: dict[str, Any] = {endpoint.media_type: success}
    if endpoint.stream is not None:
        events = schemas[endpoint.stream, "serialization"]
        content["text/event-stream"] = {"schema": {"type": "string", "contentSchema": events}}
    responses: dict[str, Any] = {
        str(status): {"description": HTTPStatus(status).phrase, "content": content}
        for status in (200, *endpoint.also)
    }
    error = schemas[endpoint.error, "serialization"]
    responses["default"] = {"description": "An error", "content": {"application/json": {"schema": error}}}
    return responses
