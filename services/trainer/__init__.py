"""Trainer: queues, runs and resumes fine-tuning jobs."""
