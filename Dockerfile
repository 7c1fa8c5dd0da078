# syntax=docker/dockerfile:1
FROM python:3.13-slim

WORKDIR /opt/receiver
COPY requirements.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.txt
COPY receiver receiver
COPY plugins plugins
COPY deploy/container.toml /etc/receiver/config.toml
RUN python -m compileall -q receiver plugins && install -d -o 10001 -g 10001 /var/lib/receiver

ENV RECEIVER_CONFIG=/etc/receiver/config.toml PORT=8000 PYTHONUNBUFFERED=1
USER 10001:10001
VOLUME /var/lib/receiver
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "receiver", "serve"]
