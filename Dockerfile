# Web, worker and beat: everything that needs no torch. The trainer and the embedded engine run from Dockerfile.gpu.
FROM python:3.11-slim

RUN useradd --create-home --uid 10001 alignapp \
 && install --directory --owner alignapp /var/lib/alignapp /artifacts
WORKDIR /app
COPY requirements/production.lock requirements/
# These are imported by serving/engine and training/ml only; a test looks that no other process loads them.
RUN grep --invert-match --extended-regexp \
      '^(torch|transformers|peft|accelerate|tokenizers|huggingface-hub|hf-xet|gguf|sympy|networkx|mpmath)==' \
      requirements/production.lock > /tmp/web.lock \
 && pip install --no-cache-dir --no-deps --requirement /tmp/web.lock
COPY --chown=root:root . .

# The commit, for the manifests of adapters: the image has no .git to ask.
ARG CODE_VERSION=""
ENV CODE_VERSION=$CODE_VERSION
ENV VAR_DIR=/var/lib/alignapp ARTIFACTS_DIR=/artifacts HOST=0.0.0.0 PYTHONUNBUFFERED=1
USER alignapp
EXPOSE 8000
CMD ["python", "-m", "alignapp.processes", "web"]
