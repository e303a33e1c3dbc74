# The third door: the same versions as `make env` and environment.yml, in an image.
#   docker build -t resdm .
#   docker run --rm -v "$PWD/work:/resdm/work" -v "$PWD/figures:/resdm/figures" resdm make reproduce
# With a GPU: docker run --gpus all …; the wheels bring CUDA themselves.
FROM python:3.11-slim

# git: provenance names the commit; make: the doors.
RUN apt-get update \
    && apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /resdm
# The environment first: it is a layer of its own until the pins change. An empty package stands in for the code.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir -p resdm/cohort resdm/evaluation resdm/methods resdm/report \
    && echo '__version__ = "0"' > resdm/__init__.py \
    && python -m venv .venv \
    && .venv/bin/python -m pip install --no-cache-dir -c constraints.txt -e '.[notebooks,dev]'

COPY . .
# Again for the version that the code says; and so that `make` takes the environment as it is.
RUN .venv/bin/python -m pip install --no-cache-dir --no-deps -e . \
    && touch .venv/.ready \
    && git config --system --add safe.directory /resdm

ENV PATH=/resdm/.venv/bin:$PATH
EXPOSE 8888
CMD ["make", "help"]
