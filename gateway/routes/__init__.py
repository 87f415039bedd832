"""The endpoints, a file for each of OpenAI's resources."""

from gateway.routes import audio, chat, completions, embeddings, files, fine_tuning, health, meta, models

ENDPOINTS = (
    *models.ENDPOINTS,
    *chat.ENDPOINTS,
    *completions.ENDPOINTS,
    *embeddings.ENDPOINTS,
    *audio.ENDPOINTS,
    *files.ENDPOINTS,
    *fine_tuning.ENDPOINTS,
    *health.ENDPOINTS,
    *meta.ENDPOINTS,
)
"""All of them: what the application serves and what its document tells of."""
