"""The endpoints, a file for each of OpenAI's resources and each of ours."""

from gateway.routes import (
    audio,
    chat,
    completions,
    embeddings,
    files,
    fine_tuning,
    health,
    hub,
    meta,
    models,
    rerank,
)

ENDPOINTS = (
    *models.ENDPOINTS,
    *chat.ENDPOINTS,
    *completions.ENDPOINTS,
    *embeddings.ENDPOINTS,
    *rerank.ENDPOINTS,
    *audio.ENDPOINTS,
    *files.ENDPOINTS,
    *fine_tuning.ENDPOINTS,
    *hub.ENDPOINTS,
    *health.ENDPOINTS,
    *meta.ENDPOINTS,
)
"""All of them: what the application serves and what its document tells of."""
