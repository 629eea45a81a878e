# Two images, built from a checkout:
#   docker build --target gateway -t holdfast .          the gateway; no torch in it
#   docker build --target vllm -t holdfast-vllm .        vLLM with the plugin (docs/pages.md)
# Pin the bases by digest where you build for more than a try: --build-arg PYTHON=python:3.11-slim-bookworm@sha256:...
ARG PYTHON=python:3.11-slim-bookworm
ARG VLLM=vllm/vllm-openai:v0.32.0

FROM ${PYTHON} AS build
WORKDIR /src
COPY requirements/build.txt requirements/image.txt requirements/
RUN python -m venv --without-pip /opt/build \
    && pip --python /opt/build/bin/python install --no-cache-dir --only-binary :all: --require-hashes \
        -r requirements/build.txt \
    && python -m venv --without-pip /opt/holdfast \
    && pip --python /opt/holdfast/bin/python install --no-cache-dir --only-binary :all: --require-hashes \
        -r requirements/image.txt
COPY pyproject.toml README.md ./
COPY guards guards
COPY gateway gateway
COPY vllm_plugin vllm_plugin
COPY loadtests loadtests
RUN pip --python /opt/build/bin/python wheel --no-cache-dir --no-index --no-deps --no-build-isolation \
        --wheel-dir /wheels . \
    && pip --python /opt/holdfast/bin/python install --no-cache-dir --no-index --no-deps /wheels/*.whl \
    && pip --python /opt/holdfast/bin/python check \
    && install -d -m 0700 /data

# What is there already stays as it is: only what the plugin lacks is added, and never another vLLM or torch.
FROM ${VLLM} AS vllm
COPY --from=build /wheels /wheels
RUN python3 -m pip list --format=freeze > /wheels/there.txt \
    && set -- /wheels/*.whl \
    && python3 -m pip install --no-cache-dir --constraint /wheels/there.txt "$1[plugin]"
ENV VLLM_PLUGINS=holdfast

FROM ${PYTHON} AS gateway
LABEL org.opencontainers.image.title="holdfast" \
    org.opencontainers.image.description="An OpenAI-compatible gateway for fleets of vLLM servers"
COPY --from=build /opt/holdfast /opt/holdfast
COPY --from=build --chown=10001:10001 /data /var/lib/holdfast
ENV PATH=/opt/holdfast/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/holdfast
VOLUME /var/lib/holdfast
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-c", "\
from http.client import HTTPConnection as C; c = C('127.0.0.1', 8080, timeout=2); c.request('GET', '/health'); \
raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["holdfast"]
CMD ["serve", "--config", "/etc/holdfast/holdfast.yaml", "--data", "/var/lib/holdfast", "--host", "0.0.0.0"]
