# syntax=docker/dockerfile:1.7
#
# Three images from one file:
#
#   docker build --target gateway      -t sluice/gateway .        no TensorFlow
#   docker build --target model-server -t sluice/model-server .   speaks TensorFlow Serving's API, on CPU
#   docker build --target training     -t sluice/training .       trains on GPU, publishes
#
# Bases are pinned by digest: `python k8s/tools/pin_bases.py` fills the digests in (all zeros: not yet filled).
# Both have Python 3.11 and Debian 12's C library, which is what lets the one build for the other. The builder's
# size does not matter, the runtime's does: it is the smallest that runs Python.

FROM python:3.11-bookworm@sha256:0000000000000000000000000000000000000000000000000000000000000000 AS builder
WORKDIR /build
ENV PIP_NO_CACHE_DIR=1 \
    PYTHONHASHSEED=0 \
    SOURCE_DATE_EPOCH=1735689600
COPY requirements/image.txt requirements/
RUN ["python3", "-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", "requirements/image.txt"]

# The packages change seldom and the sources often; each target copies its own lock.
FROM builder AS build-gateway
COPY requirements/gateway.txt requirements/
COPY k8s/tools/install_tree.sh k8s/tools/
COPY pyproject.toml README.md ./
COPY protos protos
COPY serving serving
COPY training training
RUN ["k8s/tools/install_tree.sh", "gateway", "/out"]

FROM builder AS build-model-server
COPY requirements/model-server.txt requirements/
COPY k8s/tools/install_tree.sh k8s/tools/
COPY pyproject.toml README.md ./
COPY protos protos
COPY serving serving
COPY training training
RUN ["k8s/tools/install_tree.sh", "model-server", "/out"]

FROM builder AS build-training
COPY requirements/training-gpu.txt requirements/
COPY k8s/tools/install_tree.sh k8s/tools/
COPY pyproject.toml README.md ./
COPY protos protos
COPY serving serving
COPY training training
RUN ["k8s/tools/install_tree.sh", "training-gpu", "/out"]

# No shell, no package manager, user 65532: what is not there cannot be used.
FROM gcr.io/distroless/python3-debian12:nonroot@sha256:0000000000000000000000000000000000000000000000000000000000000000 AS runtime
LABEL org.opencontainers.image.title="Sluice" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.description="Serve image classifiers with TensorFlow Serving, and let new versions in by evidence"
ENV PATH=/opt/sluice/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/sluice/lib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TF_CPP_MIN_LOG_LEVEL=2
USER 65532:65532
WORKDIR /work

FROM runtime AS gateway
COPY --from=build-gateway /out/ /
ENV SLUICE_HTTP_HOST=0.0.0.0 \
    SLUICE_GRPC_HOST=0.0.0.0
EXPOSE 8080 9000
# By HTTPS where that is what it speaks, whoever the certificate is for. With SLUICE_TLS_CLIENT_CA it cannot ask.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
  CMD ["/usr/bin/python3", "-c", "import os, ssl, urllib.request as u; e = os.environ.get; u.urlopen('http%s://127.0.0.1:%s/healthz' % ('s' * bool(e('SLUICE_TLS_CERTIFICATE')), e('SLUICE_HTTP_PORT', 8080)), timeout=2, context=ssl._create_unverified_context())"]
ENTRYPOINT ["/opt/sluice/bin/sluice"]
CMD ["gateway"]

FROM runtime AS model-server
COPY --from=build-model-server /out/ /
EXPOSE 8500 8501
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["/usr/bin/python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 8500), 2)"]
ENTRYPOINT ["/opt/sluice/bin/sluice", "model-server"]
CMD ["--model_base_path=/models/digits", "--model_name=digits"]

FROM runtime AS training
COPY --from=build-training /out/ /
HEALTHCHECK NONE
ENTRYPOINT ["/opt/sluice/bin/sluice", "train"]
CMD ["--help"]
