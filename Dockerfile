# Both images. Where there are Docker and a registry, they are built from source:
#
#   docker build --target node     -t keystore.dev/keystore-node:0.1.0     .
#   docker build --target operator -t keystore.dev/keystore-operator:0.1.0 .
#
# scripts/images.sh builds them without either, from binaries that it puts into an otherwise empty context:
# --build-arg SOURCE=prebuilt. The stage that SOURCE leaves out is never run, and its base image never asked for.
# The binaries are static (.cargo/config.toml), so nothing else has to be in an image; there is no shell either.
ARG SOURCE=built

FROM rust:1.95-bookworm AS compiled
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    cargo build --locked --release -p keystore-node -p keystorectl -p keystore-operator \
    && mkdir /binaries \
    && cd target/x86_64-unknown-linux-gnu/release \
    && cp keystore-node keystorectl keystore-operator /binaries \
    && strip /binaries/*

FROM scratch AS built
COPY --from=compiled /binaries/ /

FROM scratch AS prebuilt
COPY keystore-node keystorectl keystore-operator /

FROM ${SOURCE} AS binaries

FROM scratch AS operator
COPY --from=binaries /keystore-operator /keystore-operator
USER 65532:65532
ENTRYPOINT ["/keystore-operator"]

# keystorectl is for `kubectl exec`: in an image without a shell it is what one can look around with.
FROM scratch AS node
COPY --from=binaries /keystore-node /keystorectl /
ENV PATH=/
USER 65532:65532
ENTRYPOINT ["/keystore-node"]
