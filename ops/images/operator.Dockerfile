# The operator's image: one program and the C library, no shell, not root, nothing written.
#   docker build -f ops/images/operator.Dockerfile -t doorman-operator .
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends mold && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    cargo build --release --locked -p doorman-operator && cp target/release/doorman-operator /doorman-operator

FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="doorman-operator" \
      org.opencontainers.image.description="Operator of Doorman for Kubernetes" \
      org.opencontainers.image.source="https://github.com/doorman-dev/doorman-kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /doorman-operator /usr/local/bin/doorman-operator
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/doorman-operator"]
