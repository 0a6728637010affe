# The gateway's image: one program and the C library, no shell, not root, nothing written outside of mounted volumes.
#   docker build -f ops/images/gateway.Dockerfile -t doorman-gateway .
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends mold && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    cargo build --release --locked -p doorman-gateway && cp target/release/doorman-gateway /doorman-gateway

FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="doorman-gateway" \
      org.opencontainers.image.description="Gateway of Doorman for Kubernetes" \
      org.opencontainers.image.source="https://github.com/doorman-dev/doorman-kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /doorman-gateway /usr/local/bin/doorman-gateway
USER 65532:65532
EXPOSE 5001 9090
ENTRYPOINT ["/usr/local/bin/doorman-gateway"]
