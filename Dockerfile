# A worker with the default engine, as a user without rights.
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN python -m venv /opt/chatfleet && /opt/chatfleet/bin/pip install --no-cache-dir '.[openvino]'

FROM python:3.13-slim
RUN useradd --create-home --uid 10001 chatfleet
COPY --from=build /opt/chatfleet /opt/chatfleet
ENV PATH=/opt/chatfleet/bin:$PATH PYTHONUNBUFFERED=1
USER chatfleet
WORKDIR /home/chatfleet
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready', timeout=3)"
ENTRYPOINT ["chatfleet"]
CMD ["serve", "--host", "0.0.0.0"]
