# Three images from one clone, with the versions of constraints.txt: score (the default), serve and study.
#   docker build -t agiqa .                                     CPU
#   docker build -t agiqa --build-arg TORCH=cu130 .             for NVIDIA's GPUs: run with --gpus all
#   docker build -t agiqa-serve --target serve .
#   docker build -t agiqa-study --target study .
# How to run each stands in docs/ecosystem.md.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG TORCH=cpu
ARG UV=0.13.9
ENV VIRTUAL_ENV=/opt/agiqa PATH=/opt/agiqa/bin:$PATH \
    UV_TORCH_BACKEND=${TORCH} UV_NO_CACHE=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
RUN pip install --no-cache-dir uv==${UV} && uv venv /opt/agiqa
WORKDIR /src
COPY constraints.txt ./
# The large and lasting part first: an edit of the code does not fetch it anew.
RUN uv pip install -c constraints.txt torch torchvision open_clip_torch scipy
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY backbones backbones
COPY pipeline pipeline
RUN uv pip install -c constraints.txt .

FROM build AS build-serve
RUN uv pip install -c constraints.txt '.[serve]'

FROM build AS build-study
RUN uv pip install -c constraints.txt '.[study]'

FROM python:${PYTHON}-slim AS base
RUN useradd --no-create-home --uid 1000 agiqa
# Whatever user a container runs as (--user) has a name and a home to write to.
ENV PATH=/opt/agiqa/bin:$PATH PYTHONUNBUFFERED=1 MLFLOW_DISABLE_TELEMETRY=true DVC_NO_ANALYTICS=1 \
    HOME=/tmp LOGNAME=agiqa

FROM base AS study
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/* && \
    git config --system --add safe.directory '*'
COPY --from=build-study /opt/agiqa /opt/agiqa
WORKDIR /study
USER 1000
CMD ["dvc", "repro"]

FROM base AS serve
COPY --from=build-serve /opt/agiqa /opt/agiqa
WORKDIR /data
USER 1000
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["agiqa", "serve", "--host", "0.0.0.0"]

FROM base AS score
COPY --from=build /opt/agiqa /opt/agiqa
WORKDIR /data
USER 1000
ENTRYPOINT ["agiqa"]
CMD ["score", "."]
