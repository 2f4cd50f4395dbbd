# The serving image: the service and its models; no torch, no training code, no compiler, no pip, no root.
#   docker build -t ganymede .                                                        for CPUs
#   docker build -t ganymede:cuda --build-arg 'ONNXRUNTIME=onnxruntime-gpu[cuda,cudnn]' .   for NVIDIA GPUs (docker run --gpus all)
# Classic syntax throughout, so that builders without BuildKit can read it too.

FROM python:3.11-slim-bookworm AS build
# Which ONNX Runtime: the plain wheel is a tenth of the size of the one with the CUDA provider.
ARG ONNXRUNTIME=onnxruntime
# Further arguments for pip, such as a mirror's address.
ARG PIP_ARGS=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY pyproject.toml constraints.txt ./
# The project's own list of dependencies, with the ONNX Runtime that was asked for in place of the platform's default.
RUN python -m venv /opt/ganymede \
 && python -c "import sys, tomllib; \
needs = tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']; \
print(sys.argv[1], *(need for need in needs if not need.startswith('onnxruntime')), sep='\n')" \
    "$ONNXRUNTIME" > requirements.txt \
 && /opt/ganymede/bin/pip install $PIP_ARGS -c constraints.txt -r requirements.txt \
 && /opt/ganymede/bin/pip uninstall --yes pip setuptools
COPY service /app/service
# The running container cannot write: compile now.
RUN /opt/ganymede/bin/python -m compileall -q /app/service

FROM python:3.11-slim-bookworm
RUN groupadd --system --gid 10001 ganymede \
 && useradd --system --uid 10001 --gid ganymede --no-create-home --home-dir /app --shell /usr/sbin/nologin ganymede
COPY --from=build /opt/ganymede /opt/ganymede
COPY --from=build /app /app
COPY LICENSE /app/
# Owned by root, so that the service cannot change what it serves. Mount a folder over it to serve other models.
COPY models /models
WORKDIR /app
ENV PATH=/opt/ganymede/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1 \
    GANYMEDE_MODELS=/models GANYMEDE_PORT=8000
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['GANYMEDE_PORT'] + '/readyz', timeout=4)"]
CMD ["python", "-m", "service", "serve", "--host", "0.0.0.0"]
