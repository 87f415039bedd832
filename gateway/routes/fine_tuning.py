"""/v1/fine_tuning/jobs."""

import time

from starlette.requests import Request
from starlette.responses import Response

from gateway.body import read_json
from gateway.endpoint import Endpoint, Gateway, json_response, read_query
from gateway.openai import fine_tuning_jobs as jobs
from gateway.openai import paging
from gateway.openai.fine_tuning import JobRequest, request_to_proto
from gateway.openai.paging import ListQuery
from gateway.upstream import all_pages, unary
from lares.trainer.v1 import trainer_pb2 as pb
from services.kit import context

_JOBS = "/v1/fine_tuning/jobs"


async def create_job(gateway: Gateway, request: Request) -> Response:
    """Put a job into the queue."""
    wanted = await read_json(request, JobRequest)
    message = request_to_proto(wanted, request_id=context.request_id.get())
    call = gateway.upstream.trainer.CreateJob(message, timeout=gateway.settings.request_timeout_s)
    return _job_response((await unary(call)).job)


async def list_jobs(gateway: Gateway, request: Request) -> Response:
    """The jobs there are, newest first."""
    query = read_query(request, ListQuery)

    async def fetch(page_token: str) -> tuple[list[pb.Job], str]:
        message = pb.ListJobsRequest(page_size=1000, page_token=page_token)
        call = gateway.upstream.trainer.ListJobs(message, timeout=gateway.settings.request_timeout_s)
        answer = await unary(call)
        return list(answer.jobs), answer.next_page_token

    now_s = time.time()
    found = [jobs.job_from_proto(job, now_s=now_s) for job in await all_pages(fetch)]
    shown, has_more = paging.page(found, after=query.after, limit=query.limit)
    return json_response(jobs.JobList(data=shown, has_more=has_more))


async def get_job(gateway: Gateway, request: Request) -> Response:
    """One job."""
    message = pb.GetJobRequest(name=jobs.job_name(request.path_params["job_id"]))
    call = gateway.upstream.trainer.GetJob(message, timeout=gateway.settings.request_timeout_s)
    return _job_response((await unary(call)).job)


async def cancel_job(gateway: Gateway, request: Request) -> Response:
    """End a job."""
    message = pb.CancelJobRequest(name=jobs.job_name(request.path_params["job_id"]))
    call = gateway.upstream.trainer.CancelJob(message, timeout=gateway.settings.request_timeout_s)
    return _job_response((await unary(call)).job)


async def list_events(gateway: Gateway, request: Request) -> Response:
    """What happened to a job, newest first."""
    query = read_query(request, ListQuery)
    job_id = request.path_params["job_id"]
    parent = jobs.job_name(job_id)

    async def fetch(page_token: str) -> tuple[list[pb.JobEvent], str]:
        message = pb.ListJobEventsRequest(parent=parent, page_size=1000, page_token=page_token)
        call = gateway.upstream.trainer.ListJobEvents(message, timeout=gateway.settings.request_timeout_s)
        answer = await unary(call)
        return list(answer.events), answer.next_page_token

    found = [jobs.event_from_proto(event, job=job_id) for event in reversed(await all_pages(fetch))]
    shown, has_more = paging.page(found, after=query.after, limit=query.limit)
    return json_response(jobs.JobEventList(data=shown, has_more=has_more))


async def list_checkpoints(gateway: Gateway, request: Request) -> Response:
    """A job's checkpoints, newest first."""
    query = read_query(request, ListQuery)
    job_id = request.path_params["job_id"]
    parent = jobs.job_name(job_id)

    async def fetch(page_token: str) -> tuple[list[pb.Checkpoint], str]:
        message = pb.ListCheckpointsRequest(parent=parent, page_size=1000, page_token=page_token)
        call = gateway.upstream.trainer.ListCheckpoints(message, timeout=gateway.settings.request_timeout_s)
        answer = await unary(call)
        return list(answer.checkpoints), answer.next_page_token

    found = [jobs.checkpoint_from_proto(item, job=job_id) for item in reversed(await all_pages(fetch))]
    shown, has_more = paging.page(found, after=query.after, limit=query.limit)
    return json_response(jobs.checkpoint_list(shown, has_more))


def _job_response(job: pb.Job) -> Response:
    return json_response(jobs.job_from_proto(job, now_s=time.time()))


ENDPOINTS = [
    Endpoint("POST", _JOBS, create_job, "Fine-tune a model", request=JobRequest, response=jobs.JobObject),
    Endpoint("GET", _JOBS, list_jobs, "List jobs", query=ListQuery, response=jobs.JobList),
    Endpoint("GET", f"{_JOBS}/{{job_id}}", get_job, "Tell of a job", response=jobs.JobObject),
    Endpoint("POST", f"{_JOBS}/{{job_id}}/cancel", cancel_job, "End a job", response=jobs.JobObject),
    Endpoint(
        "GET",
        f"{_JOBS}/{{job_id}}/events",
        list_events,
        "List events",
        query=ListQuery,
        response=jobs.JobEventList,
    ),
    Endpoint(
        "GET",
        f"{_JOBS}/{{job_id}}/checkpoints",
        list_checkpoints,
        "List checkpoints",
        query=ListQuery,
        response=jobs.JobCheckpointList,
    ),
]
