# An image with the same versions as `make env` and environment.yml.
#   docker build -t resdm .
#   docker run --rm -v "$PWD/work:/resdm/work" -v "$PWD/figures:/resdm/figures" resdm make reproduce
# With a GPU: docker run --gpus all …; the wheels contain CUDA.
FROM python:3.11-slim

# git: provenance records the commit.
RUN apt-get update \
    && apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /resdm
# The environment first, in a layer of its own until the pins change. Empty packages stand in for the code.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir -p configs notebooks resdm/baselines resdm/layers resdm_suite/apps resdm_suite/cohorts/phantom \
        resdm_suite/cohorts/readers resdm_suite/evaluation resdm_suite/preprocessing resdm_suite/reporting \
    && echo '__version__ = "0"' > resdm/__init__.py \
    && python -m venv .venv \
    && .venv/bin/python -m pip install --no-cache-dir -c constraints.txt -e '.[notebooks,dev]'

COPY . .
# Again, for the version of the code. `make` then takes the environment as it is.
RUN .venv/bin/python -m pip install --no-cache-dir --no-deps -e . \
    && pwd > .venv/.ready \
    && git config --system --add safe.directory /resdm

ENV PATH=/resdm/.venv/bin:$PATH
EXPOSE 8888
CMD ["make", "help"]
