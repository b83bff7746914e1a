# GKD with its exact requirements and libtpu, for GKE: see launch/gke_xpk.sh, which builds it.
FROM python:3.11-slim
WORKDIR /gkd
COPY requirements.txt constraints.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt 'jax[tpu]' --constraint constraints.txt
COPY . .
# gs://NAME/path is /buckets/NAME/path; the log is read while it is written.
ENV GKD_BUCKETS=/buckets PYTHONUNBUFFERED=1
ENTRYPOINT []
CMD ["python", "-m", "gkd", "--help"]
