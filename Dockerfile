# The serving process (and every other command) as an image; docker-compose.yml runs it beside its two stores.
#
#   docker build --tag featurestore .
#   docker run --rm --volume ./shop:/repository featurestore -C /repository plan

FROM python:3.12-slim-bookworm AS build
WORKDIR /source
COPY requirements.txt .
RUN python -m venv /opt/featurestore \
 && /opt/featurestore/bin/pip install --no-cache-dir --require-hashes --requirement requirements.txt
COPY . .
RUN /opt/featurestore/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.12-slim-bookworm
RUN useradd --create-home --uid 10001 featurestore
COPY --from=build /opt/featurestore /opt/featurestore
ENV PATH=/opt/featurestore/bin:$PATH PYTHONUNBUFFERED=1
USER featurestore
WORKDIR /repository
EXPOSE 6566 8080 9100
STOPSIGNAL SIGTERM
ENTRYPOINT ["featurestore"]
CMD ["serve", "--host", "0.0.0.0"]
