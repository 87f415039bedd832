# One image for each service, with no more inside than it needs:
#
#     docker build --build-arg SERVICE=registry -t lares-registry .
#
# SERVICE is registry, downloader, inference, speech, trainer or gateway. For inference and trainer, TORCH_INDEX may
# name a package index to take torch from, such as one with builds for CPUs alone; pip's own is used if it is empty.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ARG SERVICE
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY requirements.lock .
# The lock's versions without its hashes: pip takes no hashes in constraints, and an image holds a part of the lock.
RUN test -n "$SERVICE" || { echo "say which service: --build-arg SERVICE=registry" >&2; exit 1; } \
    && sed -e '/^ *--hash=/d' -e 's/ *\\$//' requirements.lock > constraints.txt \
    && python -m venv /opt/lares
ENV PATH=/opt/lares/bin:$PATH
RUN case "$SERVICE" in inference | trainer) \
        pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH" ;; \
    esac
COPY . .
RUN pip install --constraint constraints.txt ".[${SERVICE},postgres,otel]"

FROM ${PYTHON_IMAGE}
ARG SERVICE
# The folders are made here so that a new volume takes over their owner.
RUN useradd --uid 10001 --home-dir /var/lib/lares --no-create-home lares \
    && install -d -o lares -g lares /var/lib/lares /var/lib/lares/store
COPY --from=build /opt/lares /opt/lares
ENV PATH=/opt/lares/bin:$PATH PYTHONUNBUFFERED=1 \
    LARES_SERVICE=${SERVICE} LARES_HOME=/var/lib/lares LARES_LOG_FORMAT=json
USER 10001
WORKDIR /var/lib/lares
VOLUME /var/lib/lares
# exec: the service is process 1 and is told when to drain.
ENTRYPOINT ["sh", "-c", "exec lares serve \"$LARES_SERVICE\""]
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD lares status "$LARES_SERVICE"
